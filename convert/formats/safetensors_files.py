"""safetensors: 8 bytes of header length, a JSON header, the tensors' bytes. Fully validated, written as a stream."""

import itertools
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import Wrote, atomic_write, unheard
from .dtypes import SAFETENSORS_CODES, native, raw_bytes, require_tensor
from .errors import Refused

MAX_HEADER = 100_000_000
METADATA = "__metadata__"
ALIGNMENT = 8
CODES = {code: dtype for dtype, code in SAFETENSORS_CODES.items()}


def read_safetensors(data: memoryview) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors, in the header's order, and the metadata of a whole safetensors file.

    Raises Refused for everything the format forbids: a header beyond 100 MB or the file, doubled names, unknown types,
    sizes that disagree, holes or overlaps between tensors, bytes missing or left over. Broken JSON: as `json`.
    """
    [size] = struct.unpack("<Q", data[:8])
    if size > MAX_HEADER or 8 + size > len(data):
        raise Refused(f"truncated or not a checkpoint: its safetensors header claims {size} bytes; download it again")
    header = json.loads(bytes(data[8 : 8 + size]), object_pairs_hook=_without_doubles)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not _are_texts(*metadata, *metadata.values()):
        raise Refused("damaged: safetensors metadata must map strings to strings; save it again")
    buffer = data[8 + size :]
    _check_layout([_offsets(entry) for entry in header.values()], len(buffer))
    return {name: _tensor(name, entry, buffer) for name, entry in header.items()}, metadata


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Refused("damaged: a name appears twice in the safetensors header; save it again")
    return dict(pairs)


def _are_texts(*items: Any) -> bool:
    try:
        return all(isinstance(item, str) and item.encode() is not None for item in items)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _offsets(entry: dict) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    return begin, end


def _check_layout(offsets: list[tuple[int, int]], size: int) -> None:
    reached = 0
    for begin, end in sorted(offsets):
        if begin != reached or end < begin:
            raise Refused("damaged: safetensors with a hole or an overlap between tensors; download it again")
        reached = end
    if reached != size:
        raise Refused(f"truncated or damaged: the tensors need {reached} bytes, the file has {size}; download it again")


def _tensor(name: str, entry: dict, buffer: memoryview) -> np.ndarray:
    if entry["dtype"] not in CODES:
        raise Refused(f"tensor {name} has the unknown type {entry['dtype']}; convert it to another type")
    dtype, shape = CODES[entry["dtype"]], entry["shape"]
    begin, end = _offsets(entry)
    if any(type(item) is not int or item < 0 for item in (*shape, begin, end)):
        raise ValueError("not a size")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise Refused(f"damaged: tensor {name} has another number of bytes than its shape needs; download it again")
    return np.ndarray(shape, dtype, buffer[begin:end])


def stream(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file in pieces: header, then one tensor after another. The header keeps the given order.

    Raises Refused, before the first piece, for names, metadata or element types that safetensors does not have.
    """
    if METADATA in tensors or not _are_texts(*tensors, *metadata, *metadata.values()):
        raise Refused(f"cannot write: names and metadata must be texts, and no tensor called {METADATA}; rename it")
    for name, array in tensors.items():
        require_tensor(array, name, SAFETENSORS_CODES, "safetensors")
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)  # wide ones first: all lie aligned
    yield _header(tensors, order, metadata)
    for name in order:
        yield raw_bytes(tensors[name])


def _header(tensors: Mapping[str, np.ndarray], order: list[str], metadata: Mapping[str, str]) -> bytes:
    ends = dict(zip(order, itertools.accumulate(tensors[name].nbytes for name in order)))
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, array in tensors.items():
        code, end = SAFETENSORS_CODES[native(array.dtype)], ends[name]
        entries[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [end - array.nbytes, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def save_safetensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    wrote: Wrote = unheard,
) -> None:
    """Write {name: array}; raises Refused for what safetensors cannot hold, and as `atomic_write`."""
    with atomic_write(path, overwrite) as file:
        for piece in stream(tensors, metadata or {}):
            file.write(piece)
            wrote(len(piece))
