"""What can go wrong with the data of a run: a worker that dies, images that cannot be read."""
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ppssl import cli
from ppssl.engine import checkpoint
from ppssl.methods.mae import MAE
from tests.launching import ROOT, clean_environment
from tests.pictures import image_folder

TINY = ["--model", "mae_vit_tiny_patch4", "--input_size", "16", "--warmup_epochs", "0", "--device", "cpu", "--batch_size", "4"]


def child_of(pid: int) -> int:
    """A data worker of a run: its only child process."""
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_a_killed_data_worker_ends_the_run_with_a_hint_and_the_last_checkpoint(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "main_pretrain.py"), *TINY, "--data_path", str(image_folder(tmp_path / "data")), "--output_dir",
               str(out), "--epochs", "100000", "--num_workers", "1", "--print_freq", "1000"]
    with subprocess.Popen(command, env=clean_environment(MKL_NUM_THREADS="1"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True) as run:
        while not checkpoint.found(out) and run.poll() is None:
            time.sleep(0.05)
        os.kill(child_of(run.pid), signal.SIGKILL)
        error = run.communicate(timeout=60)[1]
    assert run.returncode == 1 and "error: a data worker died" in error
    assert f"last good checkpoint: {out}" in error


def test_a_data_worker_that_dies_while_a_step_is_computed_is_told_in_the_same_words(tmp_path, monkeypatch, capsys):
    """Paddle raises then in the midst of whatever runs."""
    loss = MAE.loss

    def deadly(self, forward, batch, clock):
        if clock.step == 2:
            multiprocessing.active_children()[0].kill()
            time.sleep(60)                                # ends as soon as the signal is here
        return loss(self, forward, batch, clock)
    monkeypatch.setattr(MAE, "loss", deadly)
    flags = [*TINY, "--data_path", str(image_folder(tmp_path / "data")), "--output_dir", str(tmp_path / "out"), "--epochs", "2"]
    assert cli.main("pretrain", [*flags, "--num_workers", "1", "--save_steps", "1"]) == 1
    error = capsys.readouterr().err
    assert "error: a data worker died" in error and f"last good checkpoint: {checkpoint.found(tmp_path / 'out')[-1]}" in error


def test_unreadable_images_are_named_once_and_the_run_ends_normally(tmp_path, capsys):
    """Empty, cut off, and text; no workers, where Paddle's loader would hang for ever on an error."""
    data = image_folder(tmp_path / "data", per_class=12)
    bad = [data / "train" / "class0" / f"{i}.png" for i in range(3)]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:60])
    bad[2].write_text("not an image")
    flags = [*TINY, "--data_path", str(data), "--output_dir", str(tmp_path / "out")]
    assert cli.main("pretrain", [*flags, "--num_workers", "0", "--epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert all(said.count(f"unreadable image, left out: {path}\n") == 1 for path in bad)
