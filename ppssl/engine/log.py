"""What a run says: a line per interval, a JSON line per epoch, VisualDL curves. Rank 0 only."""
import json
import os
import resource
from pathlib import Path

import paddle

from ppssl import dist


class Meter:
    """Sums of device scalars, read from the device only when asked; averaged over micro-batches and ranks."""

    def __init__(self):
        self._sums, self._count = {}, 0

    def add(self, stats: dict) -> None:
        """Add one micro-batch's scalars without reading them; in float64, so that it does not matter when they are read."""
        for name, value in stats.items():
            value = value.astype("float64").reshape([])
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def read(self) -> tuple[dict[str, float], int]:
        """(means over all ranks since the last read, micro-batches of this rank); every rank has to call it."""
        if not self._count:
            return {}, 0
        names = list(self._sums)
        sums = dist.sum_over_ranks(paddle.stack([self._sums[n] for n in names])).numpy() / dist.world()
        means = {n: float(s) / self._count for n, s in zip(names, sums)}
        count, self._sums, self._count = self._count, {}, 0
        return means, count


class Log:
    """The voice of a run. output_dir None: the screen only."""

    def __init__(self, output_dir: Path | None, log_dir: Path | None):
        self._file = output_dir / "log.txt" if output_dir and dist.is_main() else None
        self._curves = None
        if log_dir and dist.is_main():
            from visualdl import LogWriter

            self._curves = LogWriter(logdir=str(log_dir))

    @property
    def draws(self) -> bool:
        """Whether this rank keeps curves and pictures."""
        return self._curves is not None

    def say(self, text: str) -> None:
        if dist.is_main():
            print(text, flush=True)

    def curves(self, step: int, values: dict[str, float]) -> None:
        """Scalars for VisualDL; `step` counts thousandths of an epoch, so that runs of other batch sizes compare."""
        if self._curves:
            for name, value in values.items():
                self._curves.add_scalar(name, value, step)

    def picture(self, step: int, image) -> None:
        """The reconstructions after `step` thousandths of an epoch, uint8 [H, W, 3], for VisualDL."""
        if self._curves:
            self._curves.add_image("reconstruction", image, step)

    def record(self, values: dict) -> None:
        """One JSON object a line in log.txt."""
        if self._file:
            with open(self._file, "a") as f:
                f.write(json.dumps(values) + "\n")
                f.flush()
                os.fsync(f.fileno())

    def close(self) -> None:
        if self._curves:
            self._curves.close()


def peak_memory_mb() -> float:
    """Largest memory so far: of the GPU, or of this process on CPU."""
    if paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 2 ** 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 10
