"""Paddle's .pdparams, .pdopt and .pd, without Paddle: one pickle of nested containers and numpy arrays."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import Wrote, atomic_write, unheard
from .dtypes import BFLOAT16, TORCH_STORAGES, in_order, require_tensor
from .errors import Refused
from .loaded import Loaded
from .tree import rebuild
from .unpickle import plain_leaf

NAME_TABLE = "StructuredToParameterName@@"
PROTOCOL = 4  # the highest that Paddle reads
STORED_BFLOAT16 = np.dtype(np.uint16)  # without a mark; Paddle has no uint16 tensors


def read_paddle(tree: Any, file_size: int) -> Loaded:
    """The unpickled `tree` of a Paddle file: (name, array) pairs become arrays, uint16 becomes bfloat16.

    Raises Refused when it is no container of tensors.
    """

    def leaf(value: Any, where: str) -> np.ndarray:
        array = plain_leaf(value, where)
        return array.view(BFLOAT16) if array.dtype == STORED_BFLOAT16 else array

    plain = rebuild(tree, leaf, _tensor_or_tuple, file_size)
    if not isinstance(plain, (dict, list, tuple, np.ndarray)):
        raise Refused(f"not a checkpoint: a pickle of a {type(plain).__name__}; check the path")
    names = plain.pop(NAME_TABLE, {}) if isinstance(plain, dict) else {}
    return Loaded("paddle", plain, parameter_names={str(key): str(name) for key, name in names.items()})


def _tensor_or_tuple(items: list) -> Any:
    """Paddle stores nested tensors as (name, array)."""
    is_tensor = len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], np.ndarray)
    return items[1] if is_tensor else tuple(items)


def save_paddle(path: str | Path, tree: Any, overwrite: bool = False, wrote: Wrote = unheard) -> None:
    """Write `tree` (see `Loaded.tree`) for `paddle.load`, which makes a Tensor of every array; key order is kept.

    Raises Refused for values and element types that Paddle cannot hold, and as `atomic_write`.
    """
    plain = rebuild(tree, lambda value, where: require_tensor(value, where, TORCH_STORAGES, "Paddle"))
    with atomic_write(path, overwrite) as file:
        pickler = _Pickler(file, PROTOCOL)
        pickler.wrote = wrote
        pickler.fast = True  # no memo, which would keep the bytes of every tensor alive
        pickler.dump(plain)


class _Pickler(pickle.Pickler):
    wrote: Wrote

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not np.ndarray:
            return NotImplemented
        self.wrote(value.nbytes)
        stored = value.view(STORED_BFLOAT16) if value.dtype == BFLOAT16 else value
        return in_order(stored).__reduce__()
