"""Two ranks, and something goes wrong on one of them."""
import json
import time

import numpy as np
import pytest

from convert.formats import load
from ppssl import cli
from ppssl.engine import checkpoint
from tests.launching import launch
from tests.pictures import image_folder

SCRIPT = "tests/faults/scripts/faulty_pretrain.py"
TINY = ["--model", "mae_vit_tiny_patch4", "--input_size", "16", "--num_workers", "0", "--warmup_epochs", "0", "--print_freq", "1",
        "--device", "cpu", "--lr", "1e-3", "--batch_size", "2"]


@pytest.fixture
def flags(tmp_path):
    return [*TINY, "--data_path", str(image_folder(tmp_path / "data")), "--output_dir", str(tmp_path / "out")]


def state(path) -> dict:
    return json.loads(load(path).metadata["state"])


def test_a_nan_on_one_rank_makes_both_leave_the_step_out(tmp_path, flags):
    code, said = launch(tmp_path / "log", SCRIPT, *flags, "--epochs", "1", FAULT="nan")
    assert code == 0, said
    [last] = checkpoint.found(tmp_path / "out")
    assert state(last)["progress"]["step"] == 4 and state(last)["optimizer_steps"] == 3
    assert all(np.isfinite(v).all() for v in load(last).tree.values()) and "grad_norm: nan" in said


def test_a_killed_rank_ends_the_job_within_seconds_and_the_next_job_resumes(tmp_path, flags):
    start = time.monotonic()
    code, said = launch(tmp_path / "log", SCRIPT, *flags, "--epochs", "3", FAULT="kill", FAULT_STEP="9")
    assert code != 0 and time.monotonic() - start < 60
    assert "error (rank 1): ended without a word" in said
    assert state(checkpoint.found(tmp_path / "out")[-1])["progress"]["step"] == 8
    code, said = launch(tmp_path / "again", "main_pretrain.py", *flags, "--epochs", "3", "--resume", "auto")
    assert code == 0 and state(checkpoint.found(tmp_path / "out")[-1])["progress"]["step"] == 12, said


def test_a_bad_request_is_answered_once_per_rank_without_a_traceback(tmp_path, flags):
    code, said = launch(tmp_path / "log", "main_pretrain.py", *flags, "--epochs", "1", "--model", "mae_vit_tiny_patch5")
    assert code != 0 and "error (rank 0): unknown pretrain model" in said and "Traceback" not in said.split("LAUNCH")[0]


@pytest.mark.slow
def test_a_checkpoint_that_takes_longer_than_gloo_waits_does_not_end_the_job(tmp_path, flags):
    code, said = launch(tmp_path / "log", SCRIPT, *flags, "--epochs", "1", FAULT="slow_save")
    assert code == 0, said


def test_resuming_with_another_number_of_ranks_is_refused(tmp_path, flags, capsys):
    assert launch(tmp_path / "log", "main_pretrain.py", *flags, "--epochs", "1")[0] == 0
    assert cli.main("pretrain", [*flags, "--epochs", "2", "--resume", "auto"]) == 2
    assert "written with ranks 2, this run has 1: use 2 to resume" in capsys.readouterr().err
