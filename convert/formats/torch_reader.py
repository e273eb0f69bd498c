"""PyTorch files, read without PyTorch: the zip files of 1.6 and later, and the streams of pickles before that."""

import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from .errors import Refused
from .loaded import Loaded
from .tree import rebuild
from .unpickle import Cursor, StoredTensor, Unpickler, plain_leaf, text, unpickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
ZIP_HEADER = 30  # bytes of a member's local header before its name
ZIP_END = 22  # bytes of the record that ends an archive without a comment


def read_torch_zip(data: memoryview, file: BinaryIO) -> Loaded:
    """A `torch.save` zip: `NAME/data.pkl` and one stored member `NAME/data/KEY` per storage.

    Raises Refused for TorchScript, other zips, compressed or overlapping members, pickles that want more than data.
    """
    if data[-ZIP_END:][:4] != b"PK\5\6":
        raise Refused("truncated or damaged: a zip archive that does not end where the file does; download it again")
    members = _members(data, zipfile.ZipFile(file).infolist())
    trees = {name: unpickle(raw) for name, raw in members.items() if name.endswith("data.pkl")}
    if len(trees) != 1:
        raise Refused(f"not a checkpoint: a zip archive with {len(trees)} data.pkl instead of one; check the path")
    [(name, tree)] = trees.items()
    folder = name.removesuffix("data.pkl")
    if members.get(f"{folder}byteorder", b"little") != b"little":
        raise Refused("its tensors are big-endian; save it again on a little-endian machine")
    storages = {key.removeprefix(f"{folder}data/"): raw for key, raw in members.items()}
    return Loaded("torch-zip", _resolve(tree, storages, len(data)))


def _members(data: memoryview, entries: list[zipfile.ZipInfo]) -> dict[str, memoryview]:
    """{name: content}, views of the file; every member must lie in it as it is, apart from the others."""
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise Refused("a TorchScript program (torch.jit.save), not weights; save the module's state_dict() instead")
    if len(set(names)) != len(names):
        raise Refused("not a checkpoint to trust: a zip archive with two members of one name; check its source")
    members, end = {}, 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise Refused("not a checkpoint: a compressed or encrypted zip archive; get the original file")
        if entry.header_offset < end:
            raise Refused("not a checkpoint to trust: a zip archive whose members overlap; check its source")
        start, end = _span(data, entry)
        members[entry.filename] = data[start:end]
    return {name: members[name] for name in names}


def _span(data: memoryview, entry: zipfile.ZipInfo) -> tuple[int, int]:
    header = data[entry.header_offset : entry.header_offset + ZIP_HEADER]
    if header[:4] != b"PK\3\4":
        raise ValueError("no member where the archive's directory says")
    start = entry.header_offset + ZIP_HEADER + sum(struct.unpack("<HH", header[26:]))
    if start + entry.file_size > len(data):
        raise Refused("truncated: a zip member ends beyond the file; copy or download it again")
    return start, start + entry.file_size


def read_torch_legacy(cursor: Cursor) -> Loaded:
    """The rest of a legacy file, behind its magic number: version, system, tree, storage keys (pickles), then storages.

    Raises Refused for other versions, big-endian systems and pickles that want more than data.
    """
    version, system = Unpickler(cursor).load(), Unpickler(cursor).load()
    if version != LEGACY_VERSION or not system["little_endian"]:
        raise Refused("an unknown kind of legacy PyTorch file; save it again with PyTorch 1.6 or later")
    main = Unpickler(cursor)
    tree = main.load()
    storages = {}
    for key in Unpickler(cursor).load():
        [size] = struct.unpack("<q", cursor.take(8))
        storages[key] = cursor.take(size * main.storages[text(key)].dtype.itemsize)
    if cursor.position != len(cursor.data):
        raise ValueError("bytes after the last storage")
    return Loaded("torch-legacy", _resolve(tree, storages, len(cursor.data)))


def _resolve(tree: Any, storages: Mapping[str, memoryview], file_size: int) -> Any:
    def leaf(value: Any, where: str) -> np.ndarray:
        if isinstance(value, StoredTensor):
            return _view(value, storages[value.storage.key])
        return plain_leaf(value, where)

    return rebuild(tree, leaf, file_size=file_size)


def _view(tensor: StoredTensor, raw: memoryview) -> np.ndarray:
    """The window as an array; numpy refuses one that leaves the storage, if offset and strides are not negative."""
    dtype = tensor.storage.dtype
    if any(number < 0 for number in (tensor.offset, *tensor.shape, *tensor.strides)):
        raise ValueError("negative offset, shape or stride")
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    if 0 in tensor.shape:  # may point anywhere
        return np.ndarray(tensor.shape, dtype)
    return np.ndarray(tensor.shape, dtype, raw, tensor.offset * dtype.itemsize, strides)
