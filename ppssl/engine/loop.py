"""The training loop: one for all methods and tasks. It knows nothing of files, logs or evaluation.

`train` is a generator: it yields after every micro-batch, and whoever drives it logs, saves, evaluates or stops.
"""
import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import paddle

from ppssl import dist
from ppssl.engine.precision import LossScale, autocast
from ppssl.optim.lars import norms
from ppssl.optim.schedules import Clock


@dataclass
class Progress:
    """Where a run is: the next micro-batch to read and the optimizer steps attempted so far."""
    epoch: int = 0
    batch: int = 0
    step: int = 0
    bad_steps: int = 0                                    # attempts in a row whose loss or gradient was not finite
    best: float = 0.0                                     # best evaluation accuracy so far
    totals: dict[str, list[float]] = field(default_factory=dict)     # this epoch's statistics: name -> [sum, count]


@dataclass(frozen=True)
class Plan:
    """What the loop does with the method's batches. amp: autocast dtype or None."""
    epochs: int
    accum_iter: int = 1
    clip_grad: float | None = None
    amp: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """An optimizer step attempted. finite: it was taken. grad_norm: before clipping. stop: a rank was asked to end."""
    lr: float
    grad_norm: float
    finite: bool
    stop: bool


@dataclass(frozen=True)
class Micro:
    """A micro-batch done. stats: its scalars, still on the device. step: given where it ended a step."""
    stats: dict
    step: Step | None
    ends_epoch: bool


def train(method, optimizer, loader, plan: Plan, progress: Progress, scaler: LossScale | None = None,
          stopping: Callable[[], bool] = lambda: False) -> Iterator[Micro]:
    """Run from `progress` (which is moved along) to the end of the plan.

    An epoch's micro-batches beyond a multiple of accum_iter are computed and their gradients dropped, as the official loops
    do. A step whose loss or gradient is not finite on any rank is left out on all of them. stopping() is asked once a
    step; that any rank wants to stop is told to all by the same step's `stop`.
    """
    forward = dist.Replica(method.network)
    update = _Update(method, optimizer, plan, scaler, stopping)
    while progress.epoch < plan.epochs:
        yield from _epoch(method, forward, update, loader, plan, progress)
        optimizer.clear_grad()
        progress.epoch, progress.batch, progress.totals = progress.epoch + 1, 0, {}


def _epoch(method, forward, update: "_Update", loader, plan: Plan, progress: Progress) -> Iterator[Micro]:
    method.train_mode()
    count = len(loader)
    losses, rates = [], None
    for i, batch in enumerate(loader.epoch(progress.epoch, progress.batch), start=progress.batch):
        clock = Clock(progress.epoch, i, count, progress.epoch * (count // plan.accum_iter) + i // plan.accum_iter)
        seed_draws(plan.seed, progress.epoch, i)
        rates = method.rates(clock) if i % plan.accum_iter == 0 else rates
        last = (i + 1) % plan.accum_iter == 0
        with contextlib.nullcontext() if last else forward.local_gradients():
            with autocast(plan.amp):
                loss, stats = method.loss(forward, batch, clock)
            (loss * (update.scale / plan.accum_iter)).backward()
        losses.append(loss.detach())
        step = update(losses, rates, clock) if last else None
        if step:
            losses, progress.step = [], progress.step + 1
            progress.bad_steps = 0 if step.finite else progress.bad_steps + 1
        progress.batch = i + 1
        yield Micro({k: v.detach() for k, v in stats.items()}, step, ends_epoch=i + 1 == count)


@dataclass(frozen=True)
class _Update:
    """Takes an optimizer step, or leaves it out where the losses or the gradient are not finite."""
    method: object
    optimizer: object
    plan: Plan
    scaler: LossScale | None
    stopping: Callable[[], bool]

    @property
    def scale(self) -> float:
        """What losses are multiplied with before the backward pass."""
        return self.scaler.scale if self.scaler else 1.0

    @paddle.no_grad()
    def __call__(self, losses: list, rates: tuple, clock: Clock) -> Step:
        """Two numbers are read from the device, once: the gradient's norm, NaN where a loss of any rank is not finite, and
        whether any rank stops. No optimizer kernel of Paddle's can leave a step out without that read.
        """
        gradients = [p.grad for group in self.optimizer.groups for p in group.tensors if p.grad is not None]
        scale, clip_grad = self.scale, self.plan.clip_grad
        bad, stop = dist.any_rank(paddle.logical_not(paddle.isfinite(paddle.add_n(losses))), self.stopping())
        norm, stop = paddle.stack([paddle.where(bad, paddle.full([], math.nan), global_norm(gradients)), stop]).tolist()
        norm /= scale
        if math.isfinite(norm):
            factor = (min(1.0, clip_grad / (norm + 1e-6)) if clip_grad else 1.0) / scale
            if factor != 1.0:
                for g in gradients:
                    g.scale_(factor)
            self.optimizer.step(*rates)
            self.method.after_step(clock)
        if self.scaler:
            self.scaler.update(math.isfinite(norm))
        self.optimizer.clear_grad()
        return Step(rates[0], norm, math.isfinite(norm), bool(stop))


def global_norm(gradients: list):
    """The 2-norm of all gradients together, a 0-d float32 tensor."""
    return paddle.linalg.norm(norms([g.astype("float32") for g in gradients]))


def seed_draws(seed: int, epoch: int, batch: int) -> None:
    """Seed what is drawn on the device (drop path, erasing noise) by where the run is, so that a resumed run draws the same.

    Ranks draw apart.
    """
    words = (seed, epoch, batch, dist.rank())
    value = 0
    for word in words:
        value = (value * 1000003 + word + 1) % (2 ** 31 - 1)
    paddle.seed(value)
