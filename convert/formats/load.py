"""The door: any weight file, told apart by content, read without running anything it holds."""

import mmap
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from .checkpoint import RESERVED, is_sealed, verify_checkpoint
from .errors import Refused
from .loaded import Loaded
from .paddle_files import read_paddle
from .safetensors_files import read_safetensors
from .torch_reader import LEGACY_MAGIC, read_torch_legacy, read_torch_zip
from .unpickle import Cursor, Unpickler

# What else is found under the name of a checkpoint: {first bytes: what it is; the fix}
STRANGERS = {
    b"\x89PNG": "a PNG image; check the path",
    b"\xff\xd8\xff": "a JPEG image; check the path",
    b"GIF8": "a GIF image; check the path",
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"\x89HDF": "an HDF5 file; check the path",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"PK\5\6": "an empty zip archive; download it again",
}
SNIFF = 512


def load(path: str | Path, verify: bool = True) -> Loaded:
    """Open a weight file of any known format. Arrays are views of the mapped file: size costs neither time nor memory.

    The checksum of an own checkpoint is verified by reading the file once (constant memory) unless `verify` is False.
    Raises Refused: missing or unreadable, not a checkpoint, truncated, damaged, or wants to run code (naming what).
    """
    try:
        with _open_regular(path) as file:
            return _read(file, verify)
    except Refused as refusal:
        raise Refused(f"{path}: {refusal}") from refusal.__cause__
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}; check the path and its permissions") from error
    except Exception as error:  # whatever hostile or damaged bytes can provoke in a parser
        raise Refused(f"{path}: truncated or damaged, or not a checkpoint; copy or download it again") from error


def _open_regular(path: str | Path) -> BinaryIO:
    mode = os.stat(path).st_mode  # before opening, which waits for a writer if it is a pipe
    if stat.S_ISDIR(mode):
        raise Refused("is a folder, not a checkpoint; name the file in it")
    if not stat.S_ISREG(mode):
        raise Refused("is not a regular file, so not a checkpoint; copy its content to a file")
    return open(path, "rb")


def _read(file: BinaryIO, verify: bool) -> Loaded:
    if os.fstat(file.fileno()).st_size == 0:
        raise Refused("is empty, not a checkpoint; copy or download it again")
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return replace(_parse(memoryview(mapped), file, verify), mapped=mapped)


def _parse(data: memoryview, file: BinaryIO, verify: bool) -> Loaded:
    if data[4:9] == b"\0\0\0\0{":  # first of all: the header's length before it may begin like a pickle or a zip
        return _read_safetensors(data, file, verify)
    if data[:4] == b"PK\3\4":
        return read_torch_zip(data, file)
    if data[0] == 0x80:
        return _read_pickle(data)
    raise Refused(f"not a checkpoint: {_describe(bytes(data[:SNIFF]))}")


def _read_pickle(data: memoryview) -> Loaded:
    cursor = Cursor(data)
    first = Unpickler(cursor).load()
    if type(first) is int and first == LEGACY_MAGIC:
        return read_torch_legacy(cursor)
    if cursor.position != len(data):
        raise ValueError("bytes after the pickle's end")
    return read_paddle(first, len(data))


def _read_safetensors(data: memoryview, file: BinaryIO, verify: bool) -> Loaded:
    tensors, metadata = read_safetensors(data)
    if not is_sealed(data, metadata):
        return Loaded("safetensors", tensors, metadata)
    if verify:
        verify_checkpoint(file)
    return Loaded("ppssl", tensors, {name: text for name, text in metadata.items() if name not in RESERVED})


def _describe(head: bytes) -> str:
    for magic, description in STRANGERS.items():
        if head.startswith(magic):
            return description
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, probably an error page of the download; download it again"
    if b"\0" not in head and _is_text(head):
        return "a text; check the path"
    if head[8:9] == b"{":
        return "a safetensors header of absurd length; download it again"
    return "neither PyTorch, Paddle, safetensors nor ppssl; check the path"


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a character cut by the end of the sample
    return True
