"""The one door for weight files: formats told apart by content, nothing run, written whole or not at all.

    load(path)                                                    any of the formats -> Loaded
    save_torch, save_paddle(path, tree)                           nested trees
    save_safetensors, save_checkpoint(path, tensors, metadata)    flat {name: array}; the last is the project's own

Neither torch nor paddle is needed. Everything that is refused raises `Refused`, a ValueError with a one-line message.
"""

from .atomic import atomic_write, sweep_temporaries
from .checkpoint import save_checkpoint, sha256_of
from .errors import Refused
from .load import load
from .loaded import Loaded
from .paddle_files import save_paddle
from .safetensors_files import save_safetensors
from .torch_writer import save_torch

__all__ = [
    "Loaded", "Refused", "atomic_write", "load", "save_checkpoint", "save_paddle", "save_safetensors", "save_torch",
    "sha256_of", "sweep_temporaries",
]
