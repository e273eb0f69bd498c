"""What the adapters share: official weights in, official names and layout out."""
from pathlib import Path

import numpy as np
import paddle

from convert.layout import relayout, transposed_keys
from ppssl.engine.loop import Plan, Progress, train
from ppssl.engine.weights import assign_all
from tests.golden.case import Case


def official_state(path: Path) -> dict:
    """The tree of an official file, read through the product's one door."""
    from convert import formats

    return formats.load(path).tree


def load_official(model, state) -> None:
    """Put an official state dict into a model, every tensor of both sides."""
    assign_all(model, relayout(state, transposed_keys(model)))


def official_arrays(model, prefix: str, value) -> dict[str, np.ndarray]:
    """{prefix/official key: array in official layout} of value(tensor) for every state tensor; None is left out."""
    found = {k: value(t) for k, t in model.state_dict().items()}
    arrays = {k: np.asarray(v.numpy()) for k, v in found.items() if v is not None}
    return {f"{prefix}/{k}": v for k, v in relayout(arrays, transposed_keys(model)).items()}


def gradients(model) -> dict[str, np.ndarray]:
    """grad/* of every parameter that has one."""
    return official_arrays(model, "grad", lambda t: t.grad)


def finals(model) -> dict[str, np.ndarray]:
    """final/* of every parameter and buffer."""
    return official_arrays(model, "final", lambda t: t)


class GivenBatches:
    """A loader over the micro-batches of a case, split evenly over its epochs, in order."""

    def __init__(self, arrays: dict[str, np.ndarray], n_epochs: int, start_epoch: int = 0):
        self.arrays, self.start = arrays, start_epoch
        total = len(next(iter(arrays.values())))
        if total % n_epochs:
            raise ValueError(f"{total} micro-batches do not divide into {n_epochs} epochs")
        self.count = total // n_epochs

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int, first: int = 0):
        for i in range((epoch - self.start) * self.count + first, (epoch - self.start + 1) * self.count):
            yield {name: tensor(a[i]) for name, a in self.arrays.items()}


def run_training(method, batches: dict[str, np.ndarray], n_epochs: int, progress: Progress, restore) -> dict:
    """The product's loop over given batches: its traces and the weights it ends with.

    restore(optimizer) puts a stored optimizer state in place.
    """
    train_args = method.config.train
    loader = GivenBatches(batches, n_epochs, progress.epoch)
    plan = Plan(progress.epoch + n_epochs, train_args.accum_iter, train_args.clip_grad)
    optimizer = method.build_optimizer()
    restore(optimizer)
    micros = list(train(method, optimizer, loader, plan, progress))
    steps = [m.step for m in micros if m.step]
    scales = [g.lr_scale for g in optimizer.groups]
    lr = np.array([s.lr for s in steps])
    return finals(method.model) | {f"trace/{k}": np.array([m.stats[k].item() for m in micros]) for k in micros[0].stats} | {
        "trace/lr": lr, "trace/grad_norm": np.array([s.grad_norm for s in steps]),
        "trace/lr_max_min": np.stack([lr * max(scales), lr * min(scales)], axis=1)}


def sliced(case: Case, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The stored excerpts ('*_slice') of whole tensors, and their means and sample standard deviations."""
    out = {}
    for name, rule in case.spec.get("slices", {}).items():
        out[name] = tensors[rule["of"]][tuple(slice(None, None, step) for step in rule["step"])]
    for name, value in tensors.items():
        out[f"out/{name}"] = value
        if value.dtype.kind == "f" and value.size > 1:
            out |= {f"out/{name}_mean": value.mean(dtype=np.float64), f"out/{name}_std": value.std(ddof=1, dtype=np.float64)}
    return out


def tensor(array: np.ndarray):
    return paddle.to_tensor(np.ascontiguousarray(array))
