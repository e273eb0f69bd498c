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
