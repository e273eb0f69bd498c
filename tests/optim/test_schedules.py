"""Schedules by the step and the epoch, beyond the golden tables."""
import pytest

from ppssl.optim.schedules import feature_ramp, step_cosine, step_drop, teacher_decay


def test_the_warm_up_starts_at_zero_ends_at_the_peak_and_the_cosine_starts_there_again():
    lr = [step_cosine(step, 2.0, 0.5, warmup=4, steps=10) for step in range(10)]
    assert lr[0] == 0.0 and lr[3] == lr[4] == 2.0 and lr[1] == pytest.approx(2 / 3)
    assert all(a > b for a, b in zip(lr[4:], lr[5:])) and lr[-1] > 0.5 == step_cosine(10, 2.0, 0.5, 4, 10)


def test_a_warm_up_of_one_step_is_a_step_at_the_start_value():
    assert step_cosine(0, 2.0, 0.0, warmup=1, steps=3, start=0.1) == 0.1
    assert step_cosine(1, 2.0, 0.0, warmup=1, steps=3) == 2.0


def test_a_warm_up_as_long_as_the_run_has_no_cosine():
    assert [step_cosine(step, 3.0, 0.0, warmup=4, steps=4) for step in range(4)] == [0.0, 1.0, 2.0, 3.0]


def test_the_dropping_schedule_keeps_the_peak_until_the_drop():
    assert [step_drop(step, 1.0, warmup=2, drop=4) for step in range(6)] == [0.0, 1.0, 1.0, 1.0, 0.1, 0.1]


def test_the_teachers_decay_grows_without_a_jump_and_stops_growing():
    decays = [teacher_decay(epoch, 0.996, dynamic=True) for epoch in range(500)]
    assert decays[0] == 0.996 and all(0 <= b - a < 1e-4 for a, b in zip(decays, decays[1:]))
    assert decays[100] == 0.9999 and decays[400] == decays[-1] == pytest.approx(0.99999)
    assert teacher_decay(450, 0.996, dynamic=False) == 0.9999


def test_the_feature_weight_is_full_after_a_quarter_of_the_run():
    weights = [feature_ramp(epoch, 0.5, epochs=40) for epoch in range(40)]
    assert weights[0] == pytest.approx(0.05) and weights[8] < 0.5 == weights[9] == weights[39]
