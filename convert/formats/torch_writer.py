"""PyTorch zip files, written without PyTorch and one tensor at a time; any PyTorch from 1.6 on reads them."""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .atomic import Wrote, atomic_write, unheard
from .dtypes import TORCH_STORAGES, native, raw_bytes, require_tensor
from .tree import rebuild

ALIGNMENT = 64  # of storages in the file, so that PyTorch can map them
LOCAL_HEADER = 30 + 20  # bytes before a member's name and padding: fixed part, and sizes of 64 bits


class _Global(NamedTuple):
    module: str
    name: str


class _Reference(NamedTuple):
    """A contiguous tensor whose elements are the member `data/{key}`."""

    key: int
    dtype: np.dtype
    shape: tuple[int, ...]
    nbytes: int


class _Pickler(pickle._Pickler):  # the Python one: it can name PyTorch's functions without importing them
    dispatch = dict(pickle._Pickler.dispatch)

    def save_named(self, value: _Global) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def save_reference(self, value: _Reference) -> None:
        """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)"""
        storage = _Global("torch", TORCH_STORAGES[value.dtype])
        self.save(_Global("torch._utils", "_rebuild_tensor_v2"))
        self.write(pickle.MARK)
        self.save(("storage", storage, str(value.key), "cpu", value.nbytes // value.dtype.itemsize))
        self.write(pickle.BINPERSID)
        for argument in (0, value.shape, _strides(value.shape), False, OrderedDict()):
            self.save(argument)
        self.write(pickle.TUPLE + pickle.REDUCE)

    dispatch[_Global] = save_named
    dispatch[_Reference] = save_reference


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In elements, of a contiguous tensor; PyTorch's rule for empty ones counts a size of 0 as 1."""
    return tuple(math.prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape)))


def save_torch(path: str | Path, tree: Any, overwrite: bool = False, wrote: Wrote = unheard) -> None:
    """Write `tree` (see `Loaded.tree`) as `torch.save` would: arrays as contiguous CPU tensors; dtypes, key order kept.

    Raises Refused for values and element types that PyTorch files cannot hold, and as `atomic_write`.
    """
    arrays: list[np.ndarray] = []

    def leaf(value: Any, where: str) -> _Reference:
        arrays.append(require_tensor(value, where, TORCH_STORAGES, "PyTorch"))
        return _Reference(len(arrays) - 1, native(value.dtype), value.shape, value.nbytes)

    structure = io.BytesIO()
    _Pickler(structure, protocol=2).dump(rebuild(tree, leaf))
    with atomic_write(path, overwrite) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, file, "data.pkl", structure.getbuffer())
        _add(archive, file, "byteorder", b"little")
        for key, array in enumerate(arrays):
            _add(archive, file, f"data/{key}", raw_bytes(array))
            wrote(array.nbytes)
        _add(archive, file, "version", b"3\n")


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes | memoryview) -> None:
    """One member, stored as it is, its content aligned by padding in the header's extra field (as PyTorch does it)."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    padding = -(file.tell() + LOCAL_HEADER + len(entry.filename) + 4) % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(entry, "w", force_zip64=True) as member:
        member.write(content)
