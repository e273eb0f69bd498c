"""Parameter groups, optimizers, schedules, weight averages."""
