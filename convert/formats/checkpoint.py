"""The project's own checkpoint: a safetensors file that carries a SHA-256 of itself.

The checksum stands in the metadata, always at the same place of the file: behind `PREFIX`, which follows the 8 bytes of
header length. It covers every byte of the file, with its own 64 characters counted as zeros.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .atomic import Wrote, atomic_write, unheard
from .errors import Refused
from .safetensors_files import stream

FORMAT = "ppssl"
PREFIX = b'{"__metadata__":{"format":"ppssl","sha256":"'
RESERVED = ("format", "sha256")
ZEROS = "0" * 64
SEAL = slice(8 + len(PREFIX), 8 + len(PREFIX) + len(ZEROS))  # where the checksum stands in the file
SEAL_KEY = slice(SEAL.start - len(b'"sha256":"'), SEAL.start)
PIECE = 1 << 20


def save_checkpoint(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    overwrite: bool = False,
    wrote: Wrote = unheard,
) -> None:
    """Write {name: array} and text metadata, sealed with a checksum; one tensor at a time is in memory.

    Raises Refused for reserved metadata names, what safetensors cannot hold, and as `atomic_write`.
    """
    if any(name in metadata for name in RESERVED):
        raise Refused(f"cannot write {path}: the metadata names {' and '.join(RESERVED)} are reserved; rename them")
    digest = hashlib.sha256()
    with atomic_write(path, overwrite) as file:
        for piece in stream(tensors, {"format": FORMAT, "sha256": ZEROS, **metadata}):
            digest.update(piece)
            file.write(piece)
            wrote(len(piece))
        file.seek(SEAL.start)
        file.write(digest.hexdigest().encode())


def is_sealed(data: memoryview, metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file says it is an own checkpoint, by either mark: a flipped bit must not unseal it."""
    return metadata.get("format") == FORMAT or data[SEAL_KEY] == b'"sha256":"'


def verify_checkpoint(file: BinaryIO) -> None:
    """Read an own checkpoint from start to end. Raises Refused when a bit of it differs from what was written."""
    file.seek(0)
    head = bytearray(file.read(SEAL.stop))
    if head[8 : SEAL.start] != PREFIX:
        raise Refused("a ppssl checkpoint changed by another tool, which broke its checksum; use the original")
    expected = bytes(head[SEAL])
    head[SEAL] = ZEROS.encode()
    digest = hashlib.sha256(head)
    while piece := file.read(PIECE):
        digest.update(piece)
    if digest.hexdigest().encode() != expected:
        raise Refused("damaged: its checksum does not match its content; use a copy or an earlier one")


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal characters; constant memory. Raises Refused when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}; check the path") from error
