"""Optimizer state between PyTorch (by position in the groups) and this project (by slot and parameter name)."""
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.formats import Refused

# What a parameter's state is called in PyTorch (AdamW; MAE's LARS; BYOL's LARS and SGD) and here
SLOTS = {"exp_avg": "moment1", "exp_avg_sq": "moment2", "mu": "momentum", "momentum_buffer": "momentum"}
BETAS = ("beta1_pow_acc", "beta2_pow_acc")                # what Paddle's Adam holds of the betas and the step


def slots_of(state: Mapping[int, Mapping]) -> dict[str, str]:
    """{PyTorch's slot: ours} of what a state holds."""
    return {theirs: ours for theirs, ours in SLOTS.items() if any(theirs in entry for entry in state.values())}


def steps_taken(state: Mapping[int, Mapping]) -> int:
    """The optimizer steps that a state's own counters tell; 0 where it has none."""
    return max((int(np.asarray(entry["step"])) for entry in state.values() if "step" in entry), default=0)


def shapes_fit(state: Mapping[int, Mapping], names: Mapping[int, str], shapes: Mapping[str, tuple]) -> None:
    """Raises Refused unless every moment has the shape of the parameter (PyTorch's layout) that its position stands for."""
    for position, entry in state.items():
        for slot in SLOTS.keys() & entry.keys():
            name = names.get(position)
            if isinstance(entry[slot], np.ndarray) and (name is None or entry[slot].shape != tuple(shapes[name])):
                raise Refused(f"its optimizer state {position} has the shape {list(entry[slot].shape)}, the parameter {name} there "
                              f"{list(shapes.get(name, ()))}: it was written by another method; continue with the weights alone")


def extra_tensors(state: Mapping[int, Mapping], names: Mapping[int, str], optimizer) -> dict[str, np.ndarray]:
    """What Paddle's AdamW keeps beside the moments: beta ** (steps + 1) of every parameter, by our names."""
    if not hasattr(optimizer, "betas"):
        return {}
    return {f"{slot}.{names[position]}": np.array([beta ** (int(np.asarray(entry["step"])) + 1)], np.float32)
            for position, entry in state.items() for slot, beta in zip(BETAS, optimizer.betas)}


def adam_from_torch(state: Mapping, optimizer, transposed: frozenset[str]) -> tuple[dict[str, np.ndarray], int]:
    """The 'optimizer' entry of a PyTorch AdamW checkpoint -> ({slot.name: array}, steps taken).

    optimizer: this project's AdamW over the same model; its groups hold the parameters in the official order. Raises
    Refused where the numbers of parameters or the betas of the file are not this optimizer's.
    """
    names = [name for group in optimizer.groups for name, _ in group.params]
    positions = [i for group in state["param_groups"] for i in group["params"]]
    if len(positions) != len(names):
        raise Refused(f"the file's optimizer holds {len(positions)} parameters, this model trains {len(names)}; check the model")
    betas = {tuple(group["betas"]) for group in state["param_groups"]}
    if betas != {tuple(optimizer.betas)}:
        raise Refused(f"the file's optimizer has betas {sorted(betas)}, this method {optimizer.betas}; check the method")
    order, entries = dict(zip(positions, names)), state["state"]
    out = {f"{ours}.{order[i]}": entry[theirs].T if order[i] in transposed else entry[theirs]
           for theirs, ours in slots_of(entries).items() for i, entry in entries.items()}
    return out | extra_tensors(entries, order, optimizer), steps_taken(entries)


def torch_state(stored: Mapping[str, np.ndarray], steps: int, optimizer, transposed: frozenset[str], lr: float) -> dict[str, Any]:
    """A run's optimizer state ({slot.name: array}) as `torch.optim` loads it. lr: of a group whose scale is 1; the authors'
    schedules set it anew before the first step."""
    state, groups, position = {}, [], 0
    theirs = {ours: name for name, ours in SLOTS.items() if (name == "mu") == is_mae_lars(optimizer) or ours != "momentum"}
    for group in optimizer.groups:
        first = position
        for name, _ in group.params:
            entry = {theirs[slot]: stored[f"{slot}.{name}"] for slot in theirs if f"{slot}.{name}" in stored}
            if entry:
                step = {"step": np.array(steps, np.float32)} if "exp_avg" in entry else {}
                state[position] = step | {k: v.T if name in transposed else v for k, v in entry.items()}
            position += 1
        groups.append(torch_group(group, optimizer, lr) | {"params": list(range(first, position))})
    return {"state": state, "param_groups": groups}
