"""Weights out of any file for a model at hand: found among its sections, named and laid out as the model's."""
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.contents import RECIPE, RUN_SECTIONS, nested, state_dicts
from convert.families import NAMINGS, SECTIONS, Naming
from convert.formats import Loaded, Refused, load
from convert.layout import official_buffer, relayout, transposed_keys


def read_weights(path: str | Path, model, sections: tuple[str, ...] = SECTIONS) -> dict[str, np.ndarray]:
    """The weights in `path`, in Paddle's layout for `model`, whatever the format and the framework that wrote it.

    sections: names under which a file may keep the weights, tried in order. What is not the model's comes along as it
    is. Raises Refused where the file has none.
    """
    loaded = load(path)
    state = named_as(find_state(loaded, path, sections), model)
    flipped = transposed_keys(model)
    return state if is_paddle_layout(loaded, state, model, flipped) else relayout(state, flipped)


def find_state(loaded: Loaded, path, sections: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The first section that is present, or else the whole file, as {name: array}; a common `module.` is removed.

    Raises Refused where there are no tensors.
    """
    found = {where[-1] if where else None: state for where, state in state_dicts(nested(loaded)[0])}
    wanted = [section for name in sections for section in (name, RUN_SECTIONS.get(name)) if section in found]
    state = found.get(wanted[0] if wanted else None)
    if not state:
        raise Refused(f"{path} holds no weights: expected tensors by name, or under one of {', '.join(sections)}")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def named_as(state: Mapping[str, np.ndarray], model) -> dict[str, np.ndarray]:
    """The tensors under the publisher's naming that gives the model most of its own."""
    own = set(model.state_dict())
    plain = {official_buffer(key): value for key, value in state.items()}

    def renamed(naming: Naming) -> dict[str, np.ndarray]:
        names = {key: naming.official(key) for key in plain}
        return {name: plain[key] for key, name in names.items() if name is not None}
    return max((renamed(naming) for naming in NAMINGS), key=lambda tensors: len(own & tensors.keys()))


def is_paddle_layout(loaded: Loaded, state: Mapping[str, np.ndarray], model, flipped: frozenset[str]) -> bool:
    """Whether the Linear weights lie as Paddle's: by the shapes where they tell, else by the format."""
    own = model.state_dict()
    shapes = [(tuple(state[key].shape), tuple(own[key].shape)) for key in flipped & state.keys() & own.keys()]
    votes = [theirs == ours for theirs, ours in shapes if ours[0] != ours[1] and theirs in (ours, ours[::-1])]
    return sum(votes) * 2 > len(votes) if votes else loaded.format in ("paddle", "ppssl") or RECIPE in loaded.metadata
