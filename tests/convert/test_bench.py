"""python -m ppssl.bench convert: both directions against copying the file twice."""
import sys

import pytest

from ppssl.bench import convert
from ppssl.errors import BadRequest


def test_a_row_compares_rounds_with_rounds():
    times = {"to-paddle": [4.0, 2.0, 3.0], "copy": [2.0, 2.0, 1.0], "imports": [1.0, 1.0, 1.0]}
    found = convert.row("to-paddle", "m", times, times, peak=30.0, tensors=100 << 20)
    assert (found["ours_ms"], found["peer_ms"], found["ratio"], found["peak_ratio"]) == (3000, 2000, 2.0, 0.3)


def test_a_process_that_fails_is_reported_with_its_reason(tmp_path):
    with pytest.raises(BadRequest, match="ended with code 2: .*check the path"):
        convert.timed([sys.executable, "-c", convert.CONVERT, "to-torch", tmp_path / "nowhere", "-o", tmp_path / "x"])


@pytest.mark.slow
def test_both_directions_are_measured():
    rows = convert.run(1, "mae_vit_tiny_patch4")
    assert [row["case"] for row in rows] == [
        "convert to-paddle, the first of its kind mae_vit_tiny_patch4", "convert to-paddle mae_vit_tiny_patch4", "convert to-torch mae_vit_tiny_patch4"]
    assert all(row["peak_mib"] > 0 and row["ours_ms"] > 0 and row["tensors_mib"] == 4 for row in rows)
