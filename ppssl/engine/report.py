"""The running account of a training: statistics of the interval and the epoch, pace, and the lines made of them."""
import datetime
import time

from ppssl import dist
from ppssl.engine.log import Log, Meter, peak_memory_mb
from ppssl.engine.loop import Micro, Plan, Progress, Step


class Reporter:
    """Collects micro-batches and speaks at intervals. Every rank has one and they are asked alike; rank 0 speaks."""

    def __init__(self, log: Log, loader, plan: Plan, progress: Progress, batch_size: int):
        self.log, self.loader, self.plan, self.progress = log, loader, plan, progress
        self.images_per_micro = batch_size * dist.world()
        self.meter, self.epoch_start, self.lr = Meter(), time.perf_counter(), 0.0
        self.restart()

    def restart(self) -> None:
        """Start the clock of an interval."""
        self.start, self.waited = time.perf_counter(), self.loader.waited

    def add(self, micro: Micro) -> None:
        self.meter.add(micro.stats)
        self.lr = micro.step.lr if micro.step else self.lr

    def flush(self) -> tuple[dict[str, float], int]:
        """Read the meter into the epoch's totals. Returns the means since the last read and their number of micro-batches."""
        means, count = self.meter.read()
        for name, value in means.items():
            total, number = self.progress.totals.get(name, (0.0, 0))
            self.progress.totals[name] = [total + value * count, number + count]
        return means, count

    def interval(self, step: Step) -> None:
        """The line and the curve points of the steps since the last one."""
        means, micros = self.flush()
        seconds, waited = time.perf_counter() - self.start, self.loader.waited - self.waited
        self.log.say(self._line(step, means, seconds / micros, waited / micros))
        curves = {f"train/{name}": value for name, value in means.items()}
        self.log.curves(self.thousandths(), curves | {"train/lr": step.lr, "train/grad_norm": step.grad_norm})
        self.restart()

    def _line(self, step: Step, means: dict[str, float], cost: float, waited: float) -> str:
        """The greppable line, in the form PaddleClas users know; cost and waited in seconds a micro-batch."""
        progress, batches = self.progress, len(self.loader)
        left = ((self.plan.epochs - progress.epoch) * batches - progress.batch) * cost
        values = [f"lr: {step.lr:.3e}", *(f"{name}: {value:.4f}" for name, value in means.items()),
                  f"grad_norm: {step.grad_norm:.3f}", f"batch_cost: {cost:.3f} s", f"reader_cost: {waited:.3f} s",
                  f"ips: {self.images_per_micro / cost:.1f} images/sec", f"max_mem: {peak_memory_mb():.0f} MB",
                  f"eta: {datetime.timedelta(seconds=int(left))}"]
        return f"[Train][Epoch {progress.epoch + 1}/{self.plan.epochs}][Iter: {progress.batch}/{batches}] {', '.join(values)}"

    def epoch(self, results: dict[str, float]) -> None:
        """The JSON line of an epoch, its evaluation included."""
        means = {f"train_{name}": total / count for name, (total, count) in self.progress.totals.items()}
        seconds = time.perf_counter() - self.epoch_start
        images = self.progress.batch * self.images_per_micro
        tested = {f"test_{name}": value for name, value in results.items()}
        if results:
            self.log.say(f"[Eval][Epoch {self.progress.epoch + 1}/{self.plan.epochs}] "
                         + ", ".join(f"{name}: {value:.3f}" for name, value in results.items()))
        self.log.curves(self.thousandths(), {f"test/{name}": value for name, value in results.items()})
        self.log.record({"epoch": self.progress.epoch, "train_lr": self.lr, **means, **tested, "images_per_s": images / seconds,
                         "seconds": seconds})
        self.epoch_start = time.perf_counter()
        self.restart()

    def thousandths(self) -> int:
        """Where the run is, in thousandths of an epoch."""
        return int(1000 * (self.progress.epoch + self.progress.batch / len(self.loader)))
