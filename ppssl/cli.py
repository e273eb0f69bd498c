"""What the three mains share: parse, run, and say in one line what went wrong."""
import os
import sys

from convert.formats import Refused
from ppssl.config import parse
from ppssl.errors import BadRequest, TrainingFailed


def main(task: str, argv: list[str] | None = None) -> int:
    """Carry out the command line of a task. Exit codes: 0 done, 1 failed in training, 2 bad request."""
    try:
        carry_out(task, sys.argv[1:] if argv is None else argv)
        return 0
    except (BadRequest, Refused) as error:
        return _fail(error, 2)
    except TrainingFailed as error:
        return _fail(error, 1)
    except (RuntimeError, OSError, SystemError) as error:
        if not lost_contact(error):
            raise
        return _fail(f"lost contact with another rank, see its workerlog for the reason: {str(error).strip().splitlines()[-1]}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted: continue with --resume auto", 130)


def carry_out(task: str, argv: list[str]) -> None:
    """List, describe, evaluate or train, whatever is asked for."""
    if "--list" in argv:
        from ppssl.listing import listing

        print(listing(task))
        return
    config = parse(task, argv)
    for note in config.notes:
        print(f"note: {note}", flush=True)
    if config.dry_run:
        from ppssl.engine.dry_run import describe

        describe(config)
    elif getattr(config.options, "eval", False):
        from ppssl.engine.run import evaluate_only

        evaluate_only(config)
    else:
        from ppssl.engine.run import Training

        Training(config).run()


def lost_contact(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone."""
    said = str(error).lower()
    return os.environ.get("PADDLE_TRAINER_ID") is not None and any(word in said for word in ("gloo", "nccl", "connection", "timed out"))


def _fail(error, code: int) -> int:
    rank = os.environ.get("PADDLE_TRAINER_ID")
    print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
    return code
