"""What surrounds a method: the loop, evaluation, checkpoints, precision, distribution, logging."""
