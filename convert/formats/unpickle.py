"""Pickles read without running anything: a global is looked up in a table of our own functions, never imported.

So neither torch nor paddle is needed, and whatever a file asks for beyond the table is refused by name. Large byte
strings become views of the mapped file. The table is what training code writes: tensors, numpy data, containers.
"""

import pickle
import struct
from argparse import Namespace
from typing import Any, NamedTuple

import numpy as np

from .dtypes import TORCH_STORAGES
from .errors import Refused
from .tree import require_key

MAX_READS = 5_000_000  # an opcode of one byte can cost 64 bytes of memory; a state of 1,000 tensors needs 100,000 reads
MAX_LINE = 1_000
MAX_NAME = 200


class Storage(NamedTuple):
    """A PyTorch storage by name; its elements lie elsewhere in the file."""

    dtype: np.dtype
    key: str


class StoredTensor(NamedTuple):
    """A PyTorch tensor: a strided window of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class PickledDtype:
    """numpy.dtype as pickles build it: first the kind, then (by BUILD) the byte order."""

    def __init__(self, kind: str, *_flags: bool) -> None:
        if text(kind) not in NUMPY_KINDS:
            raise Refused(f"holds numpy data of type {kind}, not numbers; save it again without")
        self.dtype = NUMPY_KINDS[kind]

    def restore(self, _version: int, order: str, *_rest: Any) -> None:
        if order == ">":
            raise Refused("holds big-endian arrays; save it again on a little-endian machine")


class PickledArray:
    """numpy.ndarray as pickles build it: first empty, then (by BUILD) shape, type and bytes."""

    array: np.ndarray

    def restore(self, _version: int, shape: tuple, kind: PickledDtype, fortran: bool, raw: memoryview | bytes) -> None:
        self.array = np.ndarray(shape, kind.dtype, raw, order="F" if fortran else "C")
        if self.array.nbytes != len(raw):
            raise ValueError("array bytes and shape disagree")


def _rebuild_tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> StoredTensor:
    if rest[2:] and rest[2]:  # (requires_grad, hooks, metadata): conjugate or negative views
        raise Refused("holds a lazily conjugated or negated tensor; save it again after .resolve_conj().resolve_neg()")
    return StoredTensor(storage, offset, shape, strides)


# The values below are passed on, never copied: a pickle can ask for the copy of one large value a million times.
# Nor are they hashed, compared or printed before their type is known: a tuple that holds another twice, and so on for
# 60 levels, is some bytes of pickle and takes for ever.


def text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("not a string")
    return value


def _itself(value: Any) -> Any:
    return value


def _dict(items: dict | None = None) -> dict:
    return {} if items is None else items


def _device(kind: str, index: int | None = None) -> str:
    if type(kind) is not str or len(kind) > 20 or type(index) not in (int, type(None)):
        raise TypeError("not a device")
    return kind if index is None else f"{kind}:{index}"


def _scalar(kind: PickledDtype, raw: bytes) -> bool | int | float | complex:
    return np.ndarray((), kind.dtype, raw).item()


NUMPY_KINDS = {kind: np.dtype(kind) for kind in "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()}

GLOBALS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": _itself,
    "torch.device": _device,
    "numpy._core.multiarray._reconstruct": lambda *_: PickledArray(),
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": PickledDtype,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda _factory=None, items=None: _dict(items),
    "builtins.tuple": _itself,
    "builtins.list": "list",  # as a defaultdict's factory only: a name, nothing to call
    "builtins.dict": "dict",
    "builtins.int": "int",
    "builtins.float": "float",
    "argparse.Namespace": lambda: Namespace(),
}
for _dtype, _storage in TORCH_STORAGES.items():
    GLOBALS[f"torch.{_dtype.name}"] = f"torch.{_dtype.name}"
    GLOBALS[f"torch.{_storage}"] = GLOBALS[f"torch.cuda.{_storage}"] = _dtype

OLD_MODULES = {"__builtin__": "builtins", "numpy.core.multiarray": "numpy._core.multiarray"}


class Cursor:
    """Bytes read in order, large ones without a copy."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position, self.reads = data, 0, 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, a view. Raises EOFError when fewer are left."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise Refused("not a checkpoint: its pickle is absurdly long; check its source")
        if not 0 <= size <= len(self.data) - self.position:
            raise EOFError("truncated")
        self.position += size
        return self.data[self.position - size : self.position]

    def read(self, size: int) -> bytes:
        return bytes(self.take(size))

    def readline(self) -> bytes:
        head = bytes(self.data[self.position : self.position + MAX_LINE])
        return self.read(head.index(b"\n") + 1)


# One allocates before it reads, three read a registry of this process, the others hash whatever they are given.
UNWANTED = (
    pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.DICT, pickle.ADDITEMS, pickle.FROZENSET,
)


class Unpickler(pickle._Unpickler):  # the Python one: its opcodes can be replaced, and its memo cannot be blown up
    """Reads one pickle of a `Cursor`; `storages` collects the PyTorch storages it names."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, cursor: Cursor) -> None:
        super().__init__(cursor, encoding="latin1")
        self.cursor = cursor
        self.storages: dict[str, Storage] = {}
        self.encoded = 0
        self.globals = GLOBALS | {"_codecs.encode": self.encode}

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{OLD_MODULES.get(module, module)}.{name}"
        if wanted not in self.globals:
            wanted = f"{module}.{name}"[:MAX_NAME]
            raise Refused(f"not a checkpoint to trust: its pickle wants {wanted}, which could run code; "
                          "have it saved again as plain tensors, numbers and strings (a state_dict)")
        return self.globals[wanted]

    def encode(self, string: str, _codec: str) -> bytes:
        """Byte strings of protocol 2, which come as text; together no longer than the file."""
        self.encoded += len(string)
        if self.encoded > len(self.cursor.data):
            raise Refused("not a checkpoint: it repeats a byte string absurdly often; check its source")
        return string.encode("latin1")

    def persistent_load(self, reference: tuple) -> Storage:
        kind, dtype, key, _device, _size, *view = reference
        if kind != "storage" or not isinstance(dtype, np.dtype) or view not in ([], [None]):
            raise ValueError("not a plain storage")
        self.storages[text(key)] = Storage(dtype, key)
        return self.storages[key]

    def load_build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if type(built) is Namespace:
            built.__dict__ = state
        elif type(built) in (PickledDtype, PickledArray):
            built.restore(*state)
        elif type(built) is not dict:  # an OrderedDict's state is `_metadata`, module versions nobody needs
            raise TypeError("state for a value that has none")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][require_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][require_key(key)] = value

    def load_frame(self) -> None:
        self.cursor.take(8)  # frames are hints for buffering; the bytes follow one another anyway

    def load_binbytes(self) -> None:
        self.append(self.cursor.take(*struct.unpack("<I", self.cursor.take(4))))

    def load_binbytes8(self) -> None:
        self.append(self.cursor.take(*struct.unpack("<Q", self.cursor.take(8))))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.BINBYTES[0]] = load_binbytes
    dispatch[pickle.BINBYTES8[0]] = load_binbytes8
    dispatch[pickle.NEWOBJ[0]] = dispatch[pickle.REDUCE[0]]  # functions stand for the classes
    for _opcode in UNWANTED:
        del dispatch[_opcode[0]]


def unpickle(data: memoryview) -> Any:
    """The one pickle that `data` is. Raises Refused, or any exception on damaged bytes."""
    cursor = Cursor(data)
    value = Unpickler(cursor).load()
    if cursor.position != len(data):
        raise ValueError("bytes after the pickle's end")
    return value


def plain_leaf(value: Any, where: str) -> Any:
    """For `tree.rebuild`: the array of a PickledArray. Raises Refused for anything else."""
    if isinstance(value, PickledArray):
        return value.array
    kind = type(value).__name__
    raise Refused(f"not a checkpoint: {where} is a {kind}, neither tensor nor plain value; save it again without")
