"""Curves from the logs of runs."""
import json

import cv2
import pytest

from ppssl import plot
from ppssl.errors import BadRequest


def log(folder, epochs, **values):
    folder.mkdir()
    lines = [{"epoch": e, "train_loss": 1 / (e + 1), "train_lr": 0.1} | values for e in epochs]
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_epochs_that_a_resumed_run_repeats_count_once(tmp_path):
    assert [e["epoch"] for e in plot.read_log(log(tmp_path / "run", [0, 1, 1, 2]))] == [0, 1, 2]


def test_several_runs_make_one_picture_with_a_panel_per_kind_of_curve(tmp_path):
    runs = [log(tmp_path / "a", range(3)), log(tmp_path / "b", range(2), test_acc1=50.0)]
    assert plot.main([*runs, "-o", str(tmp_path / "out.png")]) == 0
    height, width = cv2.imread(str(tmp_path / "out.png")).shape[:2]
    assert width == pytest.approx(3 * 600, abs=5) and height == pytest.approx(480, abs=5)


def test_what_is_no_log_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.txt").touch()
    for path in ("text", "empty", "missing"):
        with pytest.raises(BadRequest):
            plot.read_log(tmp_path / path)
    assert plot.main([str(tmp_path / "missing")]) == 2 and "\n" not in capsys.readouterr().err.strip()
