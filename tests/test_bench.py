import sys

import pytest

from ppssl.bench import __main__ as bench
from ppssl.bench import step
from ppssl.bench.duel import Contender, row, spread
from ppssl.bench.growth import line
from ppssl.errors import BadRequest


def side(times, **facts):
    return Contender(process=None, facts=facts, times=times, cpu_times=times, peak_mib=10.0)


def test_a_duel_reports_medians_and_the_median_of_its_ratios():
    found = row("x", side([0.2, 0.1, 0.3]), side([0.1, 0.1, 0.1], framework="torch"), work=4, unit="images")
    assert found["ours_ms"] == 200 and found["peer_ms"] == 100 and found["ratio"] == 2.0
    assert found["ours_images_per_s"] == 20


def test_the_spread_is_half_the_middle_half_over_the_median():
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(0.5)


def test_growth_fits_a_line():
    found = line("x", "ms", [1, 2, 3], [3.0, 5.0, 7.0])
    assert (found["start"], found["slope"], found["r2"]) == pytest.approx((1, 2, 1))


def test_an_unknown_model_is_refused_before_anything_runs():
    with pytest.raises(BadRequest, match="choose from mae_vit_tiny_patch4"):
        step.run("mae_vit_bse", 2, 1, 1, against_torch=False)


def test_a_wrong_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "stp"])
    assert bench.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_our_step_and_its_torch_peer_start_from_the_same_loss():
    found = step.run("mae_vit_tiny_patch4", 4, threads=1, repeats=1, against_torch=True)
    ours, peer = found["losses"]
    assert ours == pytest.approx(peer, rel=1e-5)
    assert found["ratio"] > 0 and found["peer_peak_mib"] > 0
