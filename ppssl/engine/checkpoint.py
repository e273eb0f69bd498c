"""Training checkpoints: one sealed file each, written by rank 0, found again by `--resume auto`."""
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from convert.formats import Loaded, Refused, load, save_checkpoint
from ppssl.config import Config
from ppssl.engine.loop import Progress
from ppssl.engine.precision import LossScale
from ppssl.engine.weights import assign_all
from ppssl.errors import BadRequest

NAME = re.compile(r"checkpoint-epoch(\d+)-step(\d+)\.safetensors")
OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint file holds. tensors: {section: {name: array}}, sections 'model', 'optimizer' and a method's own.

    world: the number of ranks that wrote it; None where it comes from another framework. batches: micro-batches of an epoch.
    """
    tensors: dict[str, dict[str, np.ndarray]]
    progress: Progress
    optimizer_steps: int
    scaler: LossScale | None
    config: dict
    world: int | None
    batches: int | None = None


def path_of(folder: Path, progress: Progress, batches: int) -> Path:
    """checkpoint-epoch0012-step00003400.safetensors: 12 epochs finished, 3,400 optimizer steps attempted."""
    finished = progress.epoch + (progress.batch >= batches)
    return folder / f"checkpoint-epoch{finished:04d}-step{progress.step:08d}.safetensors"


def found(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    named = [p for p in folder.glob("checkpoint-*.safetensors") if NAME.fullmatch(p.name)]
    return sorted(named, key=lambda p: tuple(int(n) for n in NAME.fullmatch(p.name).groups()))


def save(path: Path, method, optimizer, progress: Progress, scaler: LossScale | None, world: int,
         batches: int | None = None) -> None:
    """Write one checkpoint. Raises Refused where the disk does not take it; nothing is left behind then.

    batches: micro-batches of an epoch, which tell a converter whether the epoch is finished.
    """
    tensors = {f"{section}.{name}": t.numpy() for section, layer in method.layers().items() for name, t in layer.state_dict().items()}
    tensors |= {f"{OPTIMIZER}.{key}": t.numpy() for key, t in optimizer.state().items()}
    state = {"progress": asdict(progress), "optimizer_steps": optimizer.steps, "world": world, "batches": batches,
             "scaler": asdict(scaler) if scaler else None}
    metadata = {"state": json.dumps(state), "config": json.dumps(method.config.flat())}
    save_checkpoint(path, tensors, metadata, overwrite=True)


def read(path: Path) -> Snapshot:
    """A checkpoint of this project, its checksum verified, or one of the authors' PyTorch code, converted. Raises Refused."""
    loaded = load(path)
    if loaded.format.startswith("torch"):
        from convert.conversion import in_memory

        loaded = in_memory(loaded, path)
    return snapshot(loaded, path)


def snapshot(loaded: Loaded, path: Path) -> Snapshot:
    """The parts of an own checkpoint that is already open. Raises Refused where it is another kind of file."""
    try:
        state, config = json.loads(loaded.metadata["state"]), json.loads(loaded.metadata["config"])
        tensors: dict[str, dict[str, np.ndarray]] = {}
        for key, value in loaded.tree.items():
            section, name = key.split(".", 1)
            tensors.setdefault(section, {})[name] = value
        scaler = LossScale(**state["scaler"]) if state["scaler"] else None
        return Snapshot(tensors, Progress(**state["progress"]), state["optimizer_steps"], scaler, config, state["world"],
                        state.get("batches"))
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path} holds no training state of this project ({error}); give one of its checkpoint-*.safetensors") from None


def newest(folder: Path) -> Iterator[tuple[Path, Snapshot]]:
    """The readable checkpoints of a run folder, newest first; a damaged one is named and passed over."""
    for path in reversed(found(folder)):
        try:
            yield path, read(path)
        except Refused as error:
            print(f"passing over a damaged checkpoint: {error}", flush=True)


def check_same_run(snap: Snapshot, config: Config, world: int) -> None:
    """The same steps over the same data order as before, or BadRequest; with --resume_reshard the same data order alone.

    A state from another framework had another data order anyway, and begins at an epoch's edge: it continues with any.
    """
    if snap.world is not None and snap.config["seed"] != config.run.seed:
        raise BadRequest(f"the checkpoint was written with --seed {snap.config['seed']}, this run has {config.run.seed}: use "
                         f"{snap.config['seed']} to resume")
    for what, (before, now) in {} if config.run.resume_reshard else changed(snap, config, world).items():
        raise BadRequest(f"the checkpoint was written with {what} {before}, this run has {now}: use {before} to resume, or add "
                         "--resume_reshard")


def changed(snap: Snapshot, config: Config, world: int) -> dict[str, tuple[int, int]]:
    """What divides an epoch into other steps now than when the snapshot was written: {name: (before, now)}."""
    if snap.world is None:
        return {}
    pairs = {"ranks": (snap.world, world)}
    pairs |= {f"--{key}": (snap.config[key], getattr(config.train, key)) for key in ("batch_size", "accum_iter")}
    return {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}


def restore(snap: Snapshot, method, optimizer) -> Progress:
    """Put a snapshot into a method and its optimizer. Raises BadRequest where it is of another model."""
    try:
        for section, layer in method.layers().items():
            assign_all(layer, snap.tensors[section])
        optimizer.load(snap.tensors.get(OPTIMIZER, {}), snap.optimizer_steps)
    except (KeyError, ValueError) as error:
        raise BadRequest(f"the checkpoint is of {snap.config['model']} and does not fit {method.config.model}: {error}") from None
    return snap.progress


def keep_as_best(path: Path) -> None:
    """Give the checkpoint a second name, checkpoint-best.safetensors (a hard link, or a copy where there are none)."""
    temporary = path.with_name(f".checkpoint-best.tmp.{os.getpid()}")
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, path.with_name("checkpoint-best.safetensors"))


def prune(folder: Path, keep_last: int, keep_every: int) -> None:
    """Remove all but the newest `keep_last` checkpoints and those at an epoch edge divisible by `keep_every`."""
    paths = found(folder)
    last_of_epoch = {int(NAME.fullmatch(p.name)[1]): p for p in reversed(paths)}         # an epoch's first file is its edge
    kept = set(paths[-keep_last:]) | {p for epoch, p in last_of_epoch.items() if epoch and epoch % keep_every == 0}
    for path in paths:
        if path not in kept:
            path.unlink(missing_ok=True)
