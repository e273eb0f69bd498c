"""Optimizer state between PyTorch (by position in the groups) and this project (by slot and parameter name)."""
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from convert.formats import Refused
from ppssl.optim.groups import Group

# What a parameter's state is called in PyTorch (AdamW; MAE's LARS; BYOL's LARS and SGD) and here
SLOTS = {"exp_avg": "moment1", "exp_avg_sq": "moment2", "mu": "momentum", "momentum_buffer": "momentum"}
ADAMW = {"eps": 1e-8, "amsgrad": False, "maximize": False, "foreach": None, "capturable": False,
         "differentiable": False, "fused": None, "decoupled_weight_decay": True}       # a group as PyTorch has it by default
BETAS = ("beta1_pow_acc", "beta2_pow_acc")                # what Paddle's Adam holds of the betas and the step
VANISHED = 2_000_000                                      # steps after which no usual beta's power is a number to speak of


def parameter_order(state: Mapping, optimizer) -> dict[int, str]:
    """{position: parameter} of a PyTorch optimizer's state dict.

    optimizer: this project's, over the same model; its groups hold the parameters in the official order. Raises Refused
    where the file's number of parameters or its betas are not this optimizer's.
    """
    names = [name for group in optimizer.groups for name, _ in group.params]
    positions = [i for group in state["param_groups"] for i in group["params"]]
    if len(positions) != len(names):
        raise Refused(f"its optimizer holds {len(positions)} parameters, the method here trains {len(names)}; continue "
                      "with the weights alone (--finetune)")
    theirs, ours = {tuple(group["betas"]) for group in state["param_groups"] if "betas" in group}, {betas_of(optimizer)}
    if theirs and theirs != ours:
        raise Refused(f"its optimizer has betas {sorted(theirs)}, the method here {sorted(ours)}; continue with the "
                      "weights alone (--finetune)")
    return dict(zip(positions, names))


def betas_of(optimizer) -> tuple[float, ...]:
    return tuple(getattr(optimizer, "betas", ()))


def slots_of(state: Mapping[int, Mapping]) -> dict[str, str]:
    """{PyTorch's slot: ours} of what a state holds."""
    return {theirs: ours for theirs, ours in SLOTS.items() if any(theirs in entry for entry in state.values())}


def steps_taken(state: Mapping[int, Mapping]) -> int:
    """The optimizer steps that a state's own counters tell; 0 where it has none."""
    return max((int(np.asarray(entry["step"])) for entry in state.values() if "step" in entry), default=0)


def shapes_fit(state: Mapping[int, Mapping], names: Mapping[int, str], shapes: Mapping[str, tuple]) -> None:
    """Raises Refused unless every moment has the shape (PyTorch's layout) of the parameter at its position."""
    for position, entry in state.items():
        name = names[position]
        for slot in SLOTS.keys() & entry.keys():
            shape = np.shape(entry[slot])
            if entry[slot] is not None and shape != tuple(shapes[name]):
                raise Refused(f"its optimizer state {position} has the shape {list(shape)}, the parameter {name} there "
                              f"{list(shapes[name])}: another method wrote it; continue with the weights alone "
                              "(--finetune)")


def extra_tensors(state: Mapping[int, Mapping], names: Mapping[int, str], optimizer) -> dict[str, np.ndarray]:
    """What Paddle's AdamW keeps beside the moments: beta ** (steps + 1) of every parameter, by our names."""
    return {f"{slot}.{names[position]}": beta_power(beta, int(np.asarray(entry["step"])))
            for position, entry in state.items() if "step" in entry
            for slot, beta in zip(BETAS, betas_of(optimizer))}


@lru_cache
def beta_power(beta: float, steps: int) -> np.ndarray:
    """beta ** (steps + 1), [1] float32, with the rounding of Paddle, which multiplies once a step."""
    return np.multiply.accumulate(np.full(min(steps, VANISHED) + 1, beta, np.float32))[-1:].copy()


def adam_from_torch(state: Mapping, optimizer, transposed: frozenset[str]) -> tuple[dict[str, np.ndarray], int]:
    """The 'optimizer' entry of a PyTorch AdamW checkpoint -> ({slot.name: array}, steps taken).

    optimizer, and what is raised: as `parameter_order`.
    """
    order, entries = parameter_order(state, optimizer), state["state"]
    out = {f"{ours}.{order[i]}": entry[theirs].T if order[i] in transposed else entry[theirs]
           for theirs, ours in slots_of(entries).items() for i, entry in entries.items()}
    return out | extra_tensors(entries, order, optimizer), steps_taken(entries)


def torch_state(stored: Mapping[str, np.ndarray], steps: int, optimizer, transposed: frozenset[str], lr: float
                ) -> dict[str, Any]:
    """A run's optimizer state ({slot.name: array}) as `torch.optim` loads it.

    lr: of a group whose scale is 1; the authors' schedules set it anew before the first step.
    """
    slots, options = dialect(optimizer)
    state, groups, position = {}, [], 0
    for group in optimizer.groups:
        members = range(position, position := position + len(group.params))
        entries = {i: torch_entry(stored, name, slots, steps, name in transposed)
                   for i, (name, _) in zip(members, group.params)}
        state |= {i: entry for i, entry in entries.items() if entry}
        rates = {"lr": lr * group.lr_scale, "lr_scale": group.lr_scale, "weight_decay": group.weight_decay}
        groups.append(rates | options(group) | {"params": list(members)})
    return {"state": state, "param_groups": groups}


def torch_entry(stored: Mapping[str, np.ndarray], name: str, slots: Mapping[str, str], steps: int, flip: bool) -> dict:
    """The state of one parameter; empty where it never had a gradient."""
    entry = {theirs: stored[f"{ours}.{name}"] for theirs, ours in slots.items() if f"{ours}.{name}" in stored}
    counter = {"step": np.array(steps, np.float32)} if "exp_avg" in entry else {}
    return counter | {slot: value.T if flip else value for slot, value in entry.items()}


def dialect(optimizer) -> tuple[dict[str, str], Callable[[Group], dict]]:
    """What an optimizer's official counterpart calls its state, {theirs: ours}, and the options of its groups."""
    from ppssl.optim.adamw import AdamW
    from ppssl.optim.lars import LARS, LarsSGD

    if isinstance(optimizer, AdamW):
        return {"exp_avg": "moment1", "exp_avg_sq": "moment2"}, lambda group: ADAMW | {"betas": optimizer.betas}
    if isinstance(optimizer, LarsSGD):
        return {"momentum_buffer": "momentum"}, lambda group: sgd_options(optimizer) | {"eta": optimizer.trust} | (
            {"lars_exclude": True} if any(name in optimizer.excluded for name, _ in group.params) else {})
    if isinstance(optimizer, LARS):
        return {"mu": "momentum"}, lambda group: {"momentum": optimizer.momentum, "trust_coefficient": optimizer.trust}
    return {"momentum_buffer": "momentum"}, lambda group: sgd_options(optimizer)


def sgd_options(optimizer) -> dict[str, float | bool]:
    return {"momentum": optimizer.momentum, "dampening": optimizer.dampening, "nesterov": optimizer.nesterov}
