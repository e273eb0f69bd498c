"""Files appear whole or not at all, whatever happens meanwhile."""

import hashlib
import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from convert.formats import (
    Refused,
    atomic_write,
    load,
    save_checkpoint,
    save_paddle,
    save_torch,
    sha256_of,
    sweep_temporaries,
)

NOBODY = 65534
REPOSITORY = Path(__file__).parents[2]
WRITERS = pytest.mark.parametrize("write", ["save_torch", "save_paddle", "save_safetensors", "save_checkpoint"])


def run(script: str, *arguments) -> subprocess.CompletedProcess:
    """`script` in a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY)


def test_the_file_appears_only_at_the_end(tmp_path):
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
        assert [path.name for path in tmp_path.iterdir()] == [f".file.tmp.{os.getpid()}"]
    assert (tmp_path / "file").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_any_exception_leaves_the_old_file_and_no_temporary(tmp_path, error):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error):
        with atomic_write(tmp_path / "file", overwrite=True) as file:
            file.write(b"new")
            raise error
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(Refused, match="exists already"):
        with atomic_write(tmp_path / "file") as file:
            file.write(b"new")
            (tmp_path / "file").write_bytes(b"other")
    assert (tmp_path / "file").read_bytes() == b"other" and len(list(tmp_path.iterdir())) == 1


def test_a_leftover_of_a_dead_process_with_our_id_is_no_obstacle(tmp_path):
    (tmp_path / f".file.tmp.{os.getpid()}").write_bytes(b"left over, and longer")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("moment", ["half written", "fsync", "replace"])
def test_a_kill_at_any_moment_leaves_the_old_file_and_a_temporary_to_sweep(tmp_path, moment):
    """The child kills itself on entering the step, as a kill from outside at that moment would."""
    (tmp_path / "file").write_bytes(b"old")
    killed = run("""
        import os, signal, sys
        from convert.formats import atomic_write
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        path, moment = sys.argv[1:]
        if moment != "half written":
            setattr(os, moment, die)
        with atomic_write(path, overwrite=True) as file:
            file.write(bytes(1_000_000))
            if moment == "half written":
                die()
    """, tmp_path / "file", moment)
    assert killed.returncode == -9
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    assert len(sweep_temporaries(tmp_path)) == 1 and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_sweep_spares_living_processes_and_other_files(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    spared = {f".file.tmp.{os.getpid()}", f".file.tmp.{os.getppid()}", "file", f"file.tmp.{dead.pid}", ".file.tmp.x"}
    for name in spared | {f".a.b.tmp.{dead.pid}"}:
        (tmp_path / name).touch()
    (tmp_path / f".folder.tmp.{dead.pid}").mkdir()
    assert sweep_temporaries(tmp_path) == [tmp_path / f".a.b.tmp.{dead.pid}"]
    assert {path.name for path in tmp_path.iterdir()} == spared | {f".folder.tmp.{dead.pid}"}


def test_sweeping_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(Refused, match="does not exist"):
        sweep_temporaries(tmp_path / "absent")


@WRITERS
def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path, write):
    """The largest allowed file size stands for the disk's; the kernel reports both at the write."""
    (tmp_path / "file").write_bytes(b"old")
    full = run("""
        import resource, sys
        import numpy as np
        from convert import formats
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        path, write = sys.argv[1:]
        tensors = {name: np.ones((3, 20_000)) for name in "abc"}
        metadata = [{}] if write == "save_checkpoint" else []
        try:
            getattr(formats, write)(path, tensors, *metadata, overwrite=True)
        except formats.Refused as refused:
            print(refused)
    """, tmp_path / "file", write)
    assert full.returncode == 0 and "largest file size" in full.stdout and full.stdout.count("\n") == 1, full
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_no_space_left_is_named(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match="the disk is full; free some space"):
        save_torch(tmp_path / "file", {})
    assert list(tmp_path.iterdir()) == []


@contextmanager
def without_privileges():
    """Root may write anywhere; be somebody else for a moment."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_folders_that_cannot_be_written_are_named(tmp_path):
    tmp_path.chmod(0o555)
    with without_privileges(), pytest.raises(Refused, match="not permitted; choose a folder"):
        save_torch(tmp_path / "file", {})
    tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_folders_as_files_and_long_names_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch()
    expected = {"absent/file": "create it first", "folder": "is a folder", "": "is a folder",
                "plain/file": "folder is a file", "x" * 255: "name is too long"}
    for name, named in expected.items():
        with pytest.raises(Refused, match=named):
            save_torch(tmp_path / name, {}, overwrite=True)


def test_unreadable_files_are_named(tmp_path):
    save_torch(tmp_path / "file", {})
    (tmp_path / "file").chmod(0)
    with without_privileges(), pytest.raises(Refused, match="Permission denied; check"):
        load(tmp_path / "file")


def test_sha256_of_is_the_usual_checksum(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    assert sha256_of(tmp_path / "file") == hashlib.sha256(bytes(3_000_000)).hexdigest()
    with pytest.raises(Refused, match="cannot read"):
        sha256_of(tmp_path / "absent")


@pytest.mark.parametrize("source, write", [
    ("torch", "save_checkpoint"), ("own", "save_torch"), ("torch", "save_paddle"), ("paddle", "save_torch"),
])
def test_converting_takes_little_more_memory_than_the_tensors(tmp_path, source, write):
    """128 MB in 16 tensors, transposed on the way: mapped pages count, whole copies would show as 2x."""
    tensors = {f"blocks.{i}": np.full((2, 1024, 1024), i, np.float32) for i in range(16)}
    savers = {"torch": save_torch, "paddle": save_paddle, "own": lambda path, tree: save_checkpoint(path, tree, {})}
    savers[source](tmp_path / "from", tensors)
    done = run("""
        import sys
        from convert import formats
        from tests.convert.formats_helpers import forget_peak, resident
        forget_peak()
        before = resident()
        tree = formats.load(sys.argv[1]).tree
        opened = resident("VmHWM") - before
        metadata = [{}] if sys.argv[3] == "save_checkpoint" else []
        views = {name: array.swapaxes(1, 2) for name, array in tree.items()}
        getattr(formats, sys.argv[3])(sys.argv[2], views, *metadata)
        size = sum(array.nbytes for array in views.values())
        print(opened / size, (resident("VmHWM") - before) / size)
    """, tmp_path / "from", tmp_path / "to", write)
    opened, peak = map(float, done.stdout.split())
    assert opened < 0.1 and peak < 1.3


def test_opening_reads_only_what_is_used(tmp_path):
    """1 TB, all of it a hole of the file, opens at once."""
    header = b'{"w":{"dtype":"U8","shape":[1000000000000],"data_offsets":[0,1000000000000]}}'
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(tmp_path / "file", 8 + len(header) + 10**12)
    assert load(tmp_path / "file").tree["w"][-1] == 0
