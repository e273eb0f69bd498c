"""Optimizer state between PyTorch (by position in the groups) and this project (by slot and parameter name)."""
from collections.abc import Mapping

import numpy as np

ADAM = {"exp_avg": "moment1", "exp_avg_sq": "moment2"}


def adam_from_torch(state: Mapping, optimizer, transposed: frozenset[str]) -> tuple[dict[str, np.ndarray], int]:
    """The 'optimizer' entry of a PyTorch AdamW checkpoint -> ({slot.name: array}, steps taken).

    optimizer: this project's AdamW over the same model; its groups hold the parameters in the official order. Raises
    ValueError where the numbers of parameters or the hyper-parameters of the file are not this optimizer's.
    """
    names = [name for group in optimizer.groups for name, _ in group.params]
    positions = [i for group in state["param_groups"] for i in group["params"]]
    if len(positions) != len(names):
        raise ValueError(f"the file's optimizer holds {len(positions)} parameters, this model trains {len(names)}")
    betas = {tuple(group["betas"]) for group in state["param_groups"]}
    if betas != {tuple(optimizer.betas)}:
        raise ValueError(f"the file's optimizer has betas {sorted(betas)}, this method {optimizer.betas}")
    out, steps = {}, 0
    for name, position in zip(names, positions):
        entry = state["state"].get(position)
        if entry is None:
            continue                                      # a parameter that never had a gradient
        steps = int(np.asarray(entry["step"]))
        for theirs, ours in ADAM.items():
            out[f"{ours}.{name}"] = entry[theirs].T if name in transposed else entry[theirs]
        for k, beta in enumerate(optimizer.betas, start=1):
            out[f"beta{k}_pow_acc.{name}"] = np.array([beta ** (steps + 1)], np.float32)
    return out, steps
