"""Whole runs through the entry point: what they leave behind, how they stop, how they go on."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from convert.formats import load
from ppssl import cli
from ppssl.config import parse
from ppssl.engine import checkpoint
from ppssl.engine.run import Training
from tests.pictures import image_folder

ROOT = Path(__file__).parents[2]
TINY = ["--model", "mae_vit_tiny_patch4", "--input_size", "16", "--batch_size", "4", "--num_workers", "0", "--warmup_epochs", "0",
        "--print_freq", "2", "--device", "cpu"]


@pytest.fixture
def data(tmp_path):
    return str(image_folder(tmp_path / "data"))


def pretrain(data, out, *flags) -> int:
    return cli.main("pretrain", [*TINY, "--data_path", data, "--output_dir", str(out), *flags])


def tensors(path):
    return {k: np.array(v) for k, v in load(path).tree.items()}


def assert_same(a: Path, b: Path):
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


def test_a_run_leaves_checkpoints_log_config_and_curves(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert pretrain(data, out, "--epochs", "3") == 0
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2] and {"train_loss", "train_lr", "images_per_s", "seconds"} <= set(lines[0])
    assert [p.name for p in checkpoint.found(out)] == [f"checkpoint-epoch{e:04d}-step{4 * e:08d}.safetensors" for e in (2, 3)]
    assert yaml.safe_load((out / "config.yaml").read_text())["model"] == "mae_vit_tiny_patch4"
    assert json.loads(load(checkpoint.found(out)[-1]).metadata["config"])["epochs"] == 3
    assert list(out.glob("vdlrecords*")) and "[Train][Epoch 1/3][Iter: 2/4] lr:" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [6, 8])
def test_a_run_that_stopped_and_resumed_leaves_the_same_checkpoint(data, tmp_path, stop):
    assert pretrain(data, tmp_path / "whole", "--epochs", "3") == 0
    assert pretrain(data, tmp_path / "parts", "--epochs", "3", "--max_train_step", str(stop)) == 0
    assert pretrain(data, tmp_path / "parts", "--epochs", "3", "--resume", "auto") == 0
    assert_same(checkpoint.found(tmp_path / "whole")[-1], checkpoint.found(tmp_path / "parts")[-1])
    last = [json.loads((tmp_path / run / "log.txt").read_text().splitlines()[-1])["train_loss"] for run in ("whole", "parts")]
    assert last[0] == pytest.approx(last[1], rel=1e-12)


def test_a_run_shows_its_reconstructions_beside_its_curves(data, tmp_path):
    from visualdl import LogReader

    assert pretrain(data, tmp_path / "run", "--epochs", "2", "--save_freq", "2") == 0
    reader = LogReader(logdir=str(tmp_path / "run"), file_path=str(next((tmp_path / "run").glob("vdlrecords*"))))
    assert "reconstruction" in reader.get_tags()["image"] and "train/loss" in reader.get_tags()["scalar"]
    assert len(reader.get_data("image", "reconstruction")) == 1                  # of the second epoch alone


def test_a_checkpoint_can_be_resumed_by_path_into_another_folder(data, tmp_path):
    pretrain(data, tmp_path / "a", "--epochs", "2")
    first = checkpoint.found(tmp_path / "a")[0]
    assert pretrain(data, tmp_path / "b", "--epochs", "2", "--resume", str(first)) == 0
    assert_same(checkpoint.found(tmp_path / "a")[-1], checkpoint.found(tmp_path / "b")[-1])


def test_sigterm_saves_at_the_next_step_and_the_run_goes_on_from_there(data, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "main_pretrain.py"), *TINY, "--data_path", data, "--output_dir", str(out), "--epochs", "2000",
               "--keep_last", "1"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=tmp_path) as process:
        for line in process.stdout:
            if line.startswith("[Train][Epoch 2"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 143 and "--resume auto" in rest
    [saved] = checkpoint.found(out)
    steps = checkpoint.read(saved).progress.step
    assert 4 < steps < 2000 and pretrain(data, out, "--epochs", "2000", "--resume", "auto", "--max_train_step", str(steps + 2)) == 0
    assert checkpoint.read(checkpoint.found(out)[-1]).progress.step == steps + 2


def test_a_second_sigterm_some_seconds_later_ends_the_run_at_once(data, tmp_path, monkeypatch):
    run = Training(parse("pretrain", [*TINY, "--data_path", data, "--output_dir", str(tmp_path / "out")]))
    clock = iter([100.0, 100.4, 106.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    run._on_sigterm()
    run._on_sigterm()
    with pytest.raises(SystemExit, match="143"):
        run._on_sigterm()


def test_a_damaged_newest_checkpoint_is_passed_over(data, tmp_path, capsys):
    pretrain(data, tmp_path / "whole", "--epochs", "3")
    pretrain(data, tmp_path / "hurt", "--epochs", "3")
    newest = checkpoint.found(tmp_path / "hurt")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert pretrain(data, tmp_path / "hurt", "--epochs", "3", "--resume", "auto") == 0
    assert "passing over a damaged checkpoint" in capsys.readouterr().out
    assert_same(checkpoint.found(tmp_path / "whole")[-1], newest)


def refused(capsys, code: int) -> str:
    """The one line of a refusal."""
    assert code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_folder_that_holds_a_run_is_not_overwritten(data, tmp_path, capsys):
    pretrain(data, tmp_path / "out", "--epochs", "1")
    assert "--resume auto" in refused(capsys, pretrain(data, tmp_path / "out", "--epochs", "1"))


def test_two_runs_do_not_share_a_folder(data, tmp_path, capsys):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use by another run" in refused(capsys, pretrain(data, tmp_path / "out"))


@pytest.mark.parametrize("folder", ["file/out", "/proc/self/out", "/proc/self"])
def test_an_output_folder_that_cannot_be_made_or_written_is_found_before_training(data, tmp_path, capsys, folder):
    (tmp_path / "file").touch()
    assert "cannot write to" in refused(capsys, pretrain(data, tmp_path / folder))


@pytest.mark.parametrize("flags, said", [
    (["--data_path", "/nowhere/at/all"], "/nowhere"),
    (["--batch_size", "1000"], "do not fill one effective batch of 1000"),
    (["--resume", "/nowhere/checkpoint"], "No such file"),
    (["--input_size", "18"], "multiple of the patch size"),
    (["--amp", "fp8"], "--amp must be"),
])
def test_a_request_that_cannot_be_met_is_refused_in_one_line(data, tmp_path, capsys, flags, said):
    assert said in refused(capsys, pretrain(data, tmp_path / "out", *flags))


def test_a_dry_run_prints_the_request_and_writes_nothing(data, tmp_path, capsys):
    assert pretrain(data, tmp_path / "out", "--dry_run", "--accum_iter", "2") == 0
    said = capsys.readouterr().out
    assert "effective batch:            8 =" in said and "optimizer steps:" in said and "GFLOP" in said
    assert not (tmp_path / "out").exists()


def test_a_loss_that_stays_not_finite_stops_the_run_and_names_the_last_checkpoint(data, tmp_path, capsys):
    pretrain(data, tmp_path / "out", "--epochs", "1")
    code = pretrain(data, tmp_path / "out", "--epochs", "50", "--resume", "auto", "--lr", "1e30")
    error = capsys.readouterr().err
    assert code == 1 and "not finite for 20 steps" in error and "checkpoint-epoch" in error
