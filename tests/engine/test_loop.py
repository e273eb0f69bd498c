"""The loop: accumulation, clipping, loss scaling, steps left out, stopping."""
import math

import numpy as np
import pytest

from ppssl.engine.loop import Plan, Progress, train
from ppssl.engine.precision import LossScale
from tests.engine.tiny import Batches, determined, largest_difference, method, weights


def run(m, batches, scaler=None, optimizer=None, progress=None, **plan):
    optimizer = optimizer or m.build_optimizer()
    return list(train(m, optimizer, batches, Plan(epochs=2, **plan), progress or Progress(), scaler))


def test_accumulated_micro_batches_equal_the_large_batch():
    whole, halves = method(lr=1e-3), method(lr=1e-3, accum_iter=2)
    run(whole, Batches())
    run(halves, Batches().split(), accum_iter=2)
    assert largest_difference(determined(weights(whole)), weights(halves)) < 2e-6


class Cut(Batches):
    """Five batches, of which the last never comes."""

    def epoch(self, epoch, first=0):
        yield from list(super().epoch(epoch, first))[:-1]


def test_micro_batches_beyond_a_multiple_of_accum_iter_are_computed_and_dropped():
    whole, cut = method(accum_iter=2), method(accum_iter=2)
    micros = run(whole, Batches(5), accum_iter=2)
    run(cut, Cut(5), accum_iter=2)
    assert len(micros) == 10 and sum(m.step is not None for m in micros) == 4 and micros[4].ends_epoch
    assert largest_difference(weights(whole), weights(cut)) == 0


def test_a_loss_scale_changes_nothing_while_nothing_overflows():
    plain, scaled = method(), method()
    run(plain, Batches())
    run(scaled, Batches(), LossScale())
    assert largest_difference(weights(plain), weights(scaled)) == 0


def test_clipping_shortens_the_gradient_and_reports_its_norm_before():
    free, clipped = method(), method()
    norms = [m.step.grad_norm for m in run(free, Batches())]
    first = run(clipped, Batches(), clip_grad=norms[0] / 2)[0].step.grad_norm
    assert first == pytest.approx(norms[0], rel=1e-6)
    assert largest_difference(weights(free), weights(clipped)) > 0


class Poisoned(Batches):
    """Batch number 1 of every epoch holds a NaN."""

    def epoch(self, epoch, first=0):
        for i, batch in enumerate(super().epoch(epoch, first), start=first):
            if i == 1:
                batch["image"] = batch["image"] * math.nan
            yield batch


@pytest.mark.parametrize("scaler", [None, LossScale()])
def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_untouched(scaler):
    m = method()
    optimizer, progress = m.build_optimizer(), Progress()
    states = []
    for micro in train(m, optimizer, Poisoned(), Plan(epochs=1), progress, scaler):
        states.append((micro.step.finite, weights(m), {k: v.numpy() for k, v in optimizer.state().items()}))
    (_, w0, o0), (finite, w1, o1), (_, w2, _) = states[:3]
    assert not finite and largest_difference(w0, w1) == 0 and largest_difference(o0, o1) == 0
    assert largest_difference(w1, w2) > 0 and np.isfinite(list(w2.values())[-1]).all()
    assert progress.step == 4 and optimizer.steps == 3 and progress.bad_steps == 0


def test_bad_steps_in_a_row_are_counted():
    class AllPoisoned(Poisoned):
        def epoch(self, epoch, first=0):
            for batch in Batches.epoch(self, epoch, first):
                yield {"image": batch["image"] * math.nan, "noise": batch["noise"]}
    m, progress = method(), Progress()
    run(m, AllPoisoned(), progress=progress)
    assert progress.bad_steps == 8


def test_the_loss_scale_halves_on_overflow_and_doubles_after_enough_good_steps():
    scaler = LossScale(scale=1024.0, growth_interval=3)
    scaler.update(False)
    assert scaler.scale == 512
    for _ in range(3):
        scaler.update(True)
    assert (scaler.scale, scaler.growth_tracker) == (1024, 0)


def test_a_wish_to_stop_shows_in_the_next_step():
    m, wishes = method(), iter([False, False, True])
    steps = []
    for micro in train(m, m.build_optimizer(), Batches(), Plan(epochs=2), Progress(), None, lambda: next(wishes)):
        steps.append(micro.step.stop)
        if micro.step.stop:
            break
    assert steps == [False, False, True]


def test_training_lowers_the_loss():
    m = method(epochs=30, lr=5e-3)
    losses = [micro.stats["loss"].item() for micro in train(m, m.build_optimizer(), Batches(), Plan(epochs=30), Progress())]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
