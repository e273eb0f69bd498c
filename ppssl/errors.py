"""What went wrong, said in one line with the fix. The mains turn these into exit codes."""


class BadRequest(ValueError):
    """The request cannot be carried out as it stands (exit code 2): the message says what is wrong and the fix."""


class TrainingFailed(RuntimeError):
    """Training had to stop (exit code 1): the message says why and where the last good checkpoint is."""
