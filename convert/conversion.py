"""Files of one framework as files of the other: what is stored under which name, and the way back.

`convert.training` is imported where it is needed: it needs Paddle, whose import takes longer than a file's way back.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.contents import RECIPE, RECIPE_TENSOR, RUN_SECTIONS, Contents, Section, contents, is_training, state_dicts
from convert.formats import Loaded, Refused, save_checkpoint, save_paddle, save_safetensors, save_torch
from convert.formats.atomic import Wrote
from convert.recipe import decode, encode
from convert.recognise import COUNTER

if TYPE_CHECKING:
    from convert.training import State


@dataclass(frozen=True)
class Converted:
    """What a converted file holds, named as in an own checkpoint: 'section.key'. notes: what the user should know."""
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()


def to_paddle(found: Contents, strict: bool = False) -> Converted:
    """A PyTorch file in Paddle's layout, with the recipe of the way back; a training state becomes a run.

    strict: raise Refused where the training state cannot be continued here, instead of a note. Raises Refused where the
    file is in Paddle's layout already.
    """
    if found.main.network.paddle:
        raise Refused(f"{found.path}: its weights are in Paddle's layout already; use it as it is, or to-torch for the "
                      "way back")
    state, notes = None, ()
    try:
        state = training_state(found) if is_training(found.tree) else None
    except Refused as refusal:
        if strict:
            raise Refused(f"{found.path}: {refusal}") from None
        notes = (f"not a run to resume: {refusal}",)
    recipe, tensors = encode(found.tree, Places(found, state).place)
    if state:
        tensors |= {f"optimizer.{name}": value for name, value in state.tensors.items()}
    return Converted(tensors, {RECIPE: recipe} | dict(state.metadata if state else {}), notes)


def training_state(found: Contents) -> State:
    from convert.training import from_torch

    return from_torch(found)


@dataclass(frozen=True)
class Places:
    """Where each tensor of a file goes, and whether it is transposed on the way."""
    found: Contents
    state: State | None

    def place(self, path: tuple, tensor: np.ndarray) -> tuple[str, bool]:
        """(name, transposed) of the tensor at `path`; no name for a number that the recipe holds itself."""
        section = next((s for s in self.found.sections if s.path == path[:-1] and s.network), None)
        official = section and section.network.keys.get(path[-1])
        if official:
            return f"{run_section(section, self.found)}.{official}", official in section.network.linear
        if moment := self.moment(path):
            return moment
        return "" if tensor.ndim == 0 else f"other.{'.'.join(map(str, path))}", False

    def moment(self, path: tuple) -> tuple[str, bool] | None:
        """The place of an optimizer's tensor, ('optimizer', 'state', position, slot)."""
        if self.state is None or path[:2] != ("optimizer", "state") or path[-1] not in self.state.slots:
            return None
        name = self.state.names[path[2]]
        return f"optimizer.{self.state.slots[path[-1]]}.{name}", name in self.found.main.network.linear


def run_section(section: Section, found: Contents) -> str:
    """The section of a run that a state dict becomes."""
    entry = section.path[-1] if section.path else "model"
    return "model" if section is found.main else RUN_SECTIONS.get(entry, f"other.{entry}")


def to_torch(found: Contents) -> tuple[Any, tuple[str, ...]]:
    """(the tree of a PyTorch file, notes): the one that was converted, or the authors' form of a run or of weights."""
    if found.recipe is not None:
        return decode(found.recipe, flat_names(found)), ()
    network = found.main.network
    if not network.paddle:
        raise Refused(f"{found.path}: its weights are in PyTorch's layout already; use it as it is, or to-paddle for the "
                      "way back")
    weights = official_weights(found.main)
    if "state" in found.loaded.metadata:
        return run_to_torch(found, weights)
    others = {key: value for key, value in found.tree.items() if key in ("epoch", "args")} if found.main.path else {}
    left = [str(key) for key in found.tree if found.main.path and key not in (*found.main.path, *others)]
    return {"model": weights} | others, tuple(f"left out: {key}, which has no PyTorch form" for key in left)


def run_to_torch(found: Contents, weights: dict[str, np.ndarray]) -> tuple[dict, tuple[str, ...]]:
    from convert import training

    averages = [s for s in found.sections if s.path == ("ema",) and s.network]
    tree = training.to_torch(found, weights, official_weights(averages[0]) if averages else None)
    if training.is_inside_epoch(training.run_state(found)):
        return tree, ("saved inside an epoch: PyTorch starts that epoch again, with the weights as they are",)
    return tree, ()


def flat_names(found: Contents) -> dict[str, np.ndarray]:
    """The tensors of a converted file under the names of its recipe."""
    return {f"{section}.{key}": value for section, tensors in found.tree.items() for key, value in tensors.items()}


def official_weights(section: Section) -> dict[str, np.ndarray]:
    """A section's weights under official names, in official order and PyTorch's layout. Views.

    Paddle's own batch norm counts no batches: the counter is 0 then.
    """
    network, state = section.network, section.state
    flip = network.linear if network.paddle else frozenset()
    weights = {}
    for key in network.shapes:
        if key in network.official:
            value = state[network.official[key]]
            weights[key] = value.T if key in flip else value
        elif key.endswith(COUNTER) and f"{key.removesuffix(COUNTER)}running_var" in network.official:
            weights[key] = np.zeros((), np.int64)
    return weights


def paddle_weights(section: Section) -> dict[str, np.ndarray]:
    """A section's weights under official names, in official order and Paddle's layout. Views."""
    linear = section.network.linear
    return {key: value.T if key in linear else value for key, value in official_weights(section).items()}


def in_memory(loaded: Loaded, path: Path) -> Loaded:
    """An authors' training checkpoint as if it had been converted and opened. Raises Refused where it is none."""
    found = contents(loaded, path)
    if not is_training(found.tree):
        raise Refused(f"{path}: holds no training state (weights only); start from it with --finetune, or --resume a "
                      "checkpoint with optimizer and epoch")
    converted = to_paddle(found, strict=True)
    return Loaded("ppssl", dict(converted.tensors), dict(converted.metadata))


def write_paddle(path: Path, converted: Converted, overwrite: bool, wrote: Wrote) -> None:
    """Write in the format that the name asks for: .pdparams, .safetensors, anything else an own checkpoint."""
    if path.suffix == ".pdparams":
        recipe = np.frombuffer(converted.metadata[RECIPE].encode(), np.uint8)
        save_paddle(path, flat(converted.tensors) | {RECIPE_TENSOR: recipe}, overwrite, wrote)
    elif path.suffix == ".safetensors" and "state" not in converted.metadata:
        save_safetensors(path, flat(converted.tensors), {RECIPE: converted.metadata[RECIPE]}, overwrite, wrote)
    else:
        save_checkpoint(path, converted.tensors, converted.metadata, overwrite, wrote)


def flat(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's tensors without their section, as frameworks name them."""
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def write_torch(path: Path, tree: Any, overwrite: bool, wrote: Wrote) -> tuple[str, ...]:
    """Write a .safetensors of the weights alone, or a PyTorch file of everything; returns a note on what is left out."""
    if path.suffix != ".safetensors":
        save_torch(path, tree, overwrite, wrote)
        return ()
    found = state_dicts(tree)
    if not found:
        raise Refused(f"cannot write {path}: there are no weights, which is all that safetensors hold; choose a .pth")
    where, weights = found[0]
    save_safetensors(path, weights, {"format": "pt"}, overwrite, wrote)
    left = [str(key) for key in tree if where and key not in where]
    return (f"left out: {', '.join(left)}; safetensors hold the weights alone, a .pth everything",) if left else ()
