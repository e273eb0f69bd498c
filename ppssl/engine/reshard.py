"""`--resume_reshard`: a checkpoint continued by another number of ranks or with other batches."""
import dataclasses

from ppssl.config import Config
from ppssl.engine.checkpoint import Snapshot, changed
from ppssl.engine.loop import Progress


def placed(snap: Snapshot, config: Config, world: int, batches: int) -> tuple[Progress, str]:
    """Where a run of `batches` micro-batches an epoch goes on, and what to say of it."""
    changes, train, progress = changed(snap, config, world), config.train, snap.progress
    if changes:
        progress = resharded(snap, train.batch_size * train.accum_iter * world, train.accum_iter, batches)
    said = f"{progress.epoch} epochs and {progress.batch} batches done, step {progress.step}"
    if changes:
        said += f"; {', '.join(f'{what} {before} -> {now}' for what, (before, now) in changes.items())}: it goes on at image " \
                f"{progress.batch * train.batch_size * world} of the epoch, of which {seen(snap)} were done"
    return progress, said


def resharded(snap: Snapshot, effective: int, accum_iter: int, batches: int) -> Progress:
    """The same place in the epoch's order of samples, which does not depend on ranks and batches.

    effective: images of one optimizer step now; batches: micro-batches of an epoch now. A finished epoch stays finished.
    Otherwise the run goes on at the last step's edge at or before that place: less than a step's images are seen twice.
    """
    progress = snap.progress
    if snap.batches is not None and progress.batch >= snap.batches:
        return dataclasses.replace(progress, batch=batches)
    steps = min(seen(snap) // effective, batches // accum_iter - 1)
    return dataclasses.replace(progress, batch=steps * accum_iter)


def seen(snap: Snapshot) -> int:
    """Images of the epoch that are done."""
    return snap.progress.batch * snap.config["batch_size"] * snap.world
