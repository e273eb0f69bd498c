"""From a checkpoint of this project back to the method that wrote it."""
from pathlib import Path

from ppssl import config, methods
from ppssl.engine import checkpoint
from ppssl.engine.weights import assign_all
from ppssl.errors import BadRequest


def latest(path: str | Path) -> Path:
    """A checkpoint file itself, or the newest of a run folder. Raises BadRequest where there is none."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = checkpoint.found(path)
    if not found:
        raise BadRequest(f"{path} holds no checkpoint: give a run's --output_dir or a checkpoint file")
    return found[-1]


def rebuild(path: str | Path, with_weights: bool = True, **changes):
    """The method of a checkpoint, built from the stored config, its networks as stored (or newly initialised).

    changes: config keys to override. Raises Refused or BadRequest.
    """
    snap = checkpoint.read(latest(path))
    settings = config.restore(snap.config, **({"finetune": ""} | changes if "finetune" in snap.config else changes))
    method = methods.get(settings.task, settings.method)(settings)
    if with_weights:
        for section, layer in method.layers().items():
            assign_all(layer, snap.tensors[section])
    return method
