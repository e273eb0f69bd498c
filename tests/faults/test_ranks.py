"""Two ranks, and something goes wrong on one of them."""
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from convert.formats import load
from ppssl import cli
from ppssl.engine import checkpoint
from tests.engine.every_method import Requests
from tests.launching import ROOT, clean_environment, finish, free_port, launch, said, said_within, start
from tests.pictures import image_folder

SCRIPT = "tests/faults/scripts/faulty_pretrain.py"
TINY = ["--model", "mae_vit_tiny_patch4", "--input_size", "16", "--num_workers", "0", "--warmup_epochs", "0", "--print_freq", "1",
        "--device", "cpu", "--lr", "1e-3", "--batch_size", "2"]


@pytest.fixture
def flags(tmp_path):
    return [*TINY, "--data_path", str(image_folder(tmp_path / "data")), "--output_dir", str(tmp_path / "out")]


def state(path) -> dict:
    return json.loads(load(path).metadata["state"])


@pytest.mark.parametrize("fault", ["nan", "nan_gradient"])
def test_a_nan_on_one_rank_makes_both_leave_the_step_out(tmp_path, flags, fault):
    code, text = launch(tmp_path / "log", SCRIPT, *flags, "--epochs", "1", FAULT=fault)
    assert code == 0, text
    [last] = checkpoint.found(tmp_path / "out")
    assert state(last)["progress"]["step"] == 4 and state(last)["optimizer_steps"] == 3
    assert all(np.isfinite(v).all() for v in load(last).tree.values()) and "grad_norm: nan" in text


def test_a_killed_rank_ends_the_job_within_seconds_and_the_next_job_resumes(tmp_path, flags):
    start = time.monotonic()
    code, text = launch(tmp_path / "log", SCRIPT, *flags, "--epochs", "3", FAULT="kill", FAULT_STEP="9")
    assert code != 0 and time.monotonic() - start < 60
    assert said_within(tmp_path / "log", "error (rank 1): ended without a word"), text
    assert state(checkpoint.found(tmp_path / "out")[-1])["progress"]["step"] == 8
    code, text = launch(tmp_path / "again", "main_pretrain.py", *flags, "--epochs", "3", "--resume", "auto")
    assert code == 0 and state(checkpoint.found(tmp_path / "out")[-1])["progress"]["step"] == 12, text


def test_a_bad_request_is_answered_once_per_rank_without_a_traceback(tmp_path, flags):
    code, text = launch(tmp_path / "log", "main_pretrain.py", *flags, "--epochs", "1", "--model", "mae_vit_tiny_patch5")
    assert code != 0 and "error (rank 0): unknown pretrain model" in text and "Traceback (most recent call last):\n  File" not in text


def test_a_sigterm_to_one_rank_stops_both_at_the_same_step_with_a_checkpoint(tmp_path, flags):
    code, text = launch(tmp_path / "log", SCRIPT, *flags, "--epochs", "3", FAULT="term", FAULT_STEP="5")
    assert code != 0 and "stopped on request: continue with --resume auto" in text
    assert state(checkpoint.found(tmp_path / "out")[-1])["progress"]["step"] == 6


@pytest.mark.slow
def test_a_sigterm_to_the_launcher_leaves_a_checkpoint_of_the_step_under_way(tmp_path, flags):
    log = tmp_path / "log"
    launcher = start(log, "main_pretrain.py", *flags, "--epochs", "5000", "--keep_last", "1", "--num_workers", "1")
    while "[Epoch 2/" not in said(log) and launcher.poll() is None:
        time.sleep(0.1)
    launcher.terminate()
    code, text = finish(launcher, log)
    assert code != 0 and "stopped on request: continue with --resume auto" in text
    assert state(checkpoint.found(tmp_path / "out")[-1])["progress"]["step"] > 4


def test_ranks_that_do_not_find_each_other_say_where_to_look(tmp_path, flags):
    """One of two ranks is started."""
    master = f"127.0.0.1:{free_port()}"
    alone = clean_environment(PADDLE_TRAINERS_NUM="2", PADDLE_TRAINER_ID="0", PADDLE_MASTER=master, PADDLE_TRAINER_ENDPOINTS=master,
                              PADDLE_CURRENT_ENDPOINT=master, PADDLE_DISTRI_BACKEND="gloo", PADDLE_LOG_DIR="the/logs",
                              PPSSL_INIT_TIMEOUT="3")
    done = subprocess.run([sys.executable, str(ROOT / "main_pretrain.py"), *flags], env=alone, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and f"error (rank 0): the other ranks did not appear at {master}" in done.stderr
    assert "workerlog.* of every node in the/logs" in done.stderr and "GLOO_SOCKET_IFNAME" in done.stderr


@pytest.mark.slow
def test_two_nodes_of_one_rank_each_are_one_rank_with_the_whole_batch(tmp_path):
    requests = Requests(tmp_path, image_folder(tmp_path / "data"))
    _, *flags = requests.request("mae", "two", "--batch_size", "2")
    port = free_port()
    nodes = [(start(log, "main_pretrain.py", *flags, ranks=1, nodes=2, node=i, port=port), log)
             for i, log in enumerate((tmp_path / "node0", tmp_path / "node1"))]
    requests.here([requests.request("mae", "one", "--batch_size", "4")])
    for launcher, log in nodes:
        code, text = finish(launcher, log)
        assert code == 0, text
    requests.assert_equal_to_rounding("one", "two")
    assert requests.losses("one") == pytest.approx(requests.losses("two"), rel=1e-5)


@pytest.mark.slow
def test_a_start_and_a_checkpoint_that_take_longer_than_gloo_waits_do_not_end_the_job(tmp_path, flags):
    code, text = launch(tmp_path / "log", SCRIPT, *flags, "--epochs", "1", FAULT="slow")
    assert code == 0, text


def test_resuming_with_another_number_of_ranks_is_refused(tmp_path, flags, capsys):
    assert launch(tmp_path / "log", "main_pretrain.py", *flags, "--epochs", "1")[0] == 0
    assert cli.main("pretrain", [*flags, "--epochs", "2", "--resume", "auto"]) == 2
    assert "written with ranks 2, this run has 1: use 2 to resume" in capsys.readouterr().err
