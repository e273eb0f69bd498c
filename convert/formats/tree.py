"""Rebuilding a nested tree from plain containers only, under limits that no honest checkpoint meets."""

import math
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import Refused

MAX_DEPTH = 100
MAX_NODES = 500_000
MAX_SHARING = 16  # tied and expanded tensors count every time they appear
SCALARS = (str, int, float, bool, type(None))
KEYS = (str, int, float, bool, type(None))
Leaf = Callable[[Any, str], Any]


class _Rebuilder:
    """Limits matter because a pickle of a kilobyte can share one list so often that walking it never ends."""

    def __init__(self, leaf: Leaf, make_tuple: Callable[[list], Any], file_size: int | None) -> None:
        self.leaf, self.make_tuple = leaf, make_tuple
        self.nodes_left = MAX_NODES
        self.bytes_left = math.inf if file_size is None else MAX_SHARING * file_size + 2**20

    def rebuild(self, value: Any, where: str, depth: int) -> Any:
        self.nodes_left -= 1
        if depth > MAX_DEPTH or self.nodes_left < 0:
            raise Refused("not a checkpoint: nested absurdly deep or wide; save a state_dict instead")
        if isinstance(value, dict):
            return {require_key(key): self.rebuild(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
        if isinstance(value, Namespace):
            copy = Namespace()
            vars(copy).update(self.rebuild(vars(value), where, depth + 1))  # not setattr: a name may be `__class__`
            return copy
        if type(value) in (list, tuple):
            items = [self.rebuild(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
            return items if type(value) is list else self.make_tuple(items)
        if isinstance(value, np.generic):
            value = value.item()
        return value if type(value) in SCALARS else self.tensor(value, where)

    def tensor(self, value: Any, where: str) -> Any:
        leaf = self.leaf(value, where)
        self.bytes_left -= leaf.nbytes
        if self.bytes_left < 0:
            raise Refused("not a checkpoint: its tensors claim far more bytes than the file has; check its source")
        return leaf


def require_key(key: Any) -> str | int | float | None:
    """`key` itself. Raises Refused unless it is a string, a number or None."""
    if type(key) not in KEYS:
        kind = type(key).__name__
        raise Refused(f"not a checkpoint: a dict key is a {kind}; only strings and numbers can be keys")
    return key


def rebuild(
    tree: Any, leaf: Leaf, make_tuple: Callable[[list], Any] = tuple, file_size: int | None = None
) -> Any:
    """A copy of `tree` of dict, list, tuple, Namespace and scalars; other values become tensors, `leaf(value, path)`.

    Dict subclasses become dicts in the same order, numpy scalars Python ones; `make_tuple` builds a tuple from the list
    of its rebuilt items. Raises Refused when the tree is cyclic, absurdly deep or wide, has keys that are no strings
    or numbers, or its tensors (anything with `nbytes`) claim many times the bytes of the file they come from.
    """
    return _Rebuilder(leaf, make_tuple, file_size).rebuild(tree, "tree", 0)
