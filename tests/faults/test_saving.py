"""A run killed at any moment, a full disk: there is always a whole checkpoint to go on from."""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convert.formats import atomic, load
from ppssl import cli
from ppssl.engine import checkpoint
from tests.launching import ROOT, clean_environment
from tests.pictures import image_folder

TINY = ["--model", "mae_vit_tiny_patch4", "--input_size", "16", "--num_workers", "0", "--warmup_epochs", "0", "--print_freq", "1000",
        "--device", "cpu", "--batch_size", "4", "--save_steps", "1", "--keep_last", "2"]


def steps_of(path: Path) -> int:
    return json.loads(load(path).metadata["state"])["progress"]["step"]


def start(flags) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / "main_pretrain.py"), *flags], env=clean_environment(MKL_NUM_THREADS="1"),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(8))
def test_a_run_killed_at_a_random_moment_resumes_and_loses_at_most_one_interval(tmp_path, trial):
    """The run saves after every step, so that most of its time is spent in saving."""
    out = tmp_path / "out"
    flags = [*TINY, "--data_path", str(image_folder(tmp_path / "data")), "--output_dir", str(out), "--epochs", "100000", "--resume", "auto"]
    process, seen = start(flags), 0
    while len(checkpoint.found(out)) < 2 and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(trial).random())
    seen = max(int(checkpoint.NAME.fullmatch(p.name)[2]) for p in checkpoint.found(out))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    path, snap = next(checkpoint.newest(out))
    assert path == checkpoint.found(out)[-1] and snap.progress.step >= seen
    assert cli.main("pretrain", [*flags, "--max_train_step", str(snap.progress.step + 1)]) == 0
    assert steps_of(checkpoint.found(out)[-1]) == snap.progress.step + 1
    assert not list(out.glob(".*.tmp.*"))


@pytest.mark.parametrize("moment", ["write", "fsync", "replace", "sync_folder"])
def test_a_crash_at_any_step_of_a_save_leaves_the_last_checkpoint_and_no_half_one(tmp_path, monkeypatch, moment):
    out = tmp_path / "out"
    flags = [*TINY, "--data_path", str(image_folder(tmp_path / "data")), "--output_dir", str(out), "--epochs", "2"]
    assert cli.main("pretrain", [*flags, "--max_train_step", "2"]) == 0

    class Crash(BaseException):
        """As if the machine had stopped here."""

    def crash(*_, **__):
        raise Crash
    if moment == "write":
        monkeypatch.setattr(checkpoint, "save_checkpoint", crash)
    elif moment == "sync_folder":
        monkeypatch.setattr(atomic, "_sync_folder", crash)
    else:
        monkeypatch.setattr(os, moment, crash)
    with pytest.raises(Crash):
        cli.main("pretrain", [*flags, "--resume", "auto"])
    monkeypatch.undo()
    whole = [p for p, _ in checkpoint.newest(out)]
    assert whole == checkpoint.found(out)[::-1] and steps_of(whole[0]) == (3 if moment == "sync_folder" else 2)
    assert cli.main("pretrain", [*flags, "--resume", "auto"]) == 0 and steps_of(checkpoint.found(out)[-1]) == 8


def test_a_full_disk_stops_the_run_cleanly_and_names_the_last_good_checkpoint(tmp_path):
    out = tmp_path / "out"
    flags = [*TINY, "--data_path", str(image_folder(tmp_path / "data")), "--output_dir", str(out), "--epochs", "2"]
    assert cli.main("pretrain", [*flags, "--max_train_step", "2"]) == 0
    good = checkpoint.found(out)[-1]
    limit = good.stat().st_size // 2

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)     # writing beyond the limit then fails with EFBIG, as a full disk with ENOSPC
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = subprocess.run([sys.executable, str(ROOT / "main_pretrain.py"), *flags, "--resume", "auto"], preexec_fn=small_files,
                          env=clean_environment(MKL_NUM_THREADS="1"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and str(good) in done.stderr and "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert checkpoint.found(out)[-1] == good and steps_of(good) == 2 and not list(out.glob(".*.tmp.*"))
