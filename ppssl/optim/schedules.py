"""Schedules as pure functions of where a run is. Nothing here has a state to save."""
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Where a run is: micro-batch `batch` (of `batches`) of epoch `epoch`, `step` optimizer steps done before it."""
    epoch: int
    batch: int
    batches: int
    step: int

    @property
    def fractional_epoch(self) -> float:
        return self.epoch + self.batch / self.batches


def warmup_cosine(epoch: float, peak: float, floor: float, warmup_epochs: float, epochs: float) -> float:
    """Linear from 0 to `peak` over the warm-up, then half a cosine down to `floor`, at a fractional epoch.

    Source: facebookresearch/mae `util/lr_sched.py`.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def scale_lr(blr: float, batch_size: int, accum_iter: int, world_size: int) -> float:
    """The linear scaling rule (Goyal et al., arXiv 1706.02677): blr is the rate for 256 images a step."""
    return blr * batch_size * accum_iter * world_size / 256


def byol_steps(epochs: float, examples: int, global_batch: int) -> int:
    """Optimizer steps in BYOL's schedules: the division is of the product, so a run that drops last batches makes a few less."""
    return int(epochs * examples // global_batch)


def byol_lr(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear from peak / 1000 to `peak`, then a cosine over `total_steps` (not what is left of them, so it ends above).

    Source: blankWorld/BYOL-PyTorch `trainer/byol_trainer.py:adjust_learning_rate`.
    """
    floor = peak / 1000
    if step < warmup_steps:
        return floor + (peak - floor) * step / warmup_steps
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / total_steps))


def byol_momentum(step: int, base: float, total_steps: int) -> float:
    """The target's momentum, from `base` to 1 by half a cosine. Source: arXiv 2006.07733, section 3.2."""
    return 1 - (1 - base) * (math.cos(math.pi * step / total_steps) + 1) / 2


def step_warmup(step: int, peak: float, warmup: int, start: float = 0.0) -> float:
    """Linear from `start` at step 0 to `peak` at step warmup - 1."""
    return start + (peak - start) * step / max(warmup - 1, 1)


def step_cosine(step: int, peak: float, floor: float, warmup: int, steps: int, start: float = 0.0) -> float:
    """The warm-up, whose last step is at the peak, then half a cosine from the peak to one step short of `floor`.

    Source: LightDXY/BootMAE `utils.py:cosine_scheduler` (after DINO).
    """
    if step < warmup:
        return step_warmup(step, peak, warmup, start)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def step_drop(step: int, peak: float, warmup: int, drop: int, start: float = 0.0) -> float:
    """The warm-up, then the peak, from step `drop` on a tenth. Source: LightDXY/BootMAE `utils.py:step_scheduler`."""
    if step < warmup:
        return step_warmup(step, peak, warmup, start)
    return peak if step < drop else 0.1 * peak


def teacher_decay(epoch: int, start: float, dynamic: bool) -> float:
    """Decay of BootMAE's teacher: from `start` to 0.9999 over 100 epochs; with `dynamic` on to 0.99999 at epoch 400.

    Epochs are counted from 0, whatever a run's length. Source: LightDXY/BootMAE `utils.py:adjust_ema_momentum`.
    """
    if epoch < 100:
        return start + epoch / 100 * (0.9999 - start)
    return 0.9999 + min(300, epoch - 100) / 300 * (0.99999 - 0.9999) if dynamic else 0.9999


def feature_ramp(epoch: int, weight: float, epochs: int) -> float:
    """Weight of BootMAE's feature loss: linear over the first quarter of a run, from 4 * weight / epochs on.

    Source: LightDXY/BootMAE `run_pretraining.py:train_one_epoch`.
    """
    return min(weight * (1 + epoch) / epochs * 4, weight)
