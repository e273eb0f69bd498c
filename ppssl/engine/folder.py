"""The run folder: made, tried for writing and locked before training starts."""
import fcntl
import os
from pathlib import Path
from typing import IO

import yaml

from convert.formats import sweep_temporaries
from ppssl.config import Config
from ppssl.engine import checkpoint
from ppssl.errors import BadRequest


def claim(folder: Path, config: Config) -> IO:
    """Make the folder and lock it, remove what a killed run left half written, store the resolved config.

    Returns the lock, to be held as long as the run lives. Raises BadRequest: the folder cannot be written, another
    run is using it, or it holds a run and this one does not resume.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadRequest(f"{folder} is in use by another run: choose another --output_dir") from None
    except OSError as error:
        raise BadRequest(f"cannot write to {folder} ({os.strerror(error.errno)}): choose another --output_dir") from None
    sweep_temporaries(folder)
    if checkpoint.found(folder) and not config.run.resume:
        raise BadRequest(f"{folder} holds a run already: continue it with --resume auto, or choose another --output_dir")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.flat(), sort_keys=False))
    return lock
