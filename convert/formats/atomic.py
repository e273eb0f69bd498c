"""Files appear whole or not at all: temporary name, fsync, rename."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import Refused

Wrote = Callable[[int], None]  # told after each tensor how many bytes it was

TEMPORARY = re.compile(r"\..+\.tmp\.([0-9]{1,7})")

REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "it would exceed the largest file size allowed; raise it (ulimit -f) or choose another folder",
    errno.EACCES: "not permitted; choose a folder you may write in",
    errno.EPERM: "not permitted; choose a folder you may write in",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "its folder is a file; choose another folder",
    errno.ENAMETOOLONG: "the file name is too long; choose a shorter one",
}


@contextlib.contextmanager
def atomic_write(path: str | Path, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write; it takes the name `path` when the block ends, durably, and never exists in part.

    Until then it is `.{name}.tmp.{pid}` in the same folder. Any exception removes that and leaves an old `path` alone.
    Raises Refused: `path` exists and `overwrite` is False, or it cannot be written (folder, rights, space).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp.{os.getpid()}") if path.name else path
    try:
        _check_target(path, overwrite)
        temporary.unlink(missing_ok=True)  # left by a dead process that had our id, as is usual in containers
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _check_target(path, overwrite)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise Refused(f"cannot write {path}: {REASONS.get(error.errno, error.strerror or error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def unheard(_size: int) -> None:
    """A `Wrote` that nobody listens to."""


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise Refused(f"cannot write {path}: it is a folder; name a file in it")
    if not overwrite and os.path.lexists(path):
        raise Refused(f"cannot write {path}: it exists already; choose another name or allow overwriting")


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, where the file system can (some answer EINVAL or ENOTSUP)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: str | Path) -> list[Path]:
    """Remove the temporary files in `folder` (not below it) whose process on this host is gone; returns the removed.

    Raises Refused when the folder cannot be read or changed.
    """
    try:
        orphans = [entry for entry in Path(folder).iterdir() if _is_orphan(entry)]
        for orphan in orphans:
            orphan.unlink(missing_ok=True)
    except OSError as error:
        raise Refused(f"cannot clean {folder}: {REASONS.get(error.errno, error.strerror or error)}") from error
    return orphans


def _is_orphan(path: Path) -> bool:
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and path.is_file() and not _is_alive(int(match[1]))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, but alive
        return True
    return True
