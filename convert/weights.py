"""Model weights out of any file: found among its sections, brought into Paddle's layout."""
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.formats import Loaded, Refused, load
from convert.layout import relayout, transposed_keys

SECTIONS = ("model", "state_dict", "student", "teacher", "module")
PREFIXES = ("module.", "encoder.", "backbone.")


def read_weights(path: str | Path, model, sections: tuple[str, ...] = SECTIONS) -> dict[str, np.ndarray]:
    """The weights in `path`, in Paddle's layout for `model`, whatever the format and the framework that wrote it.

    sections: names under which a file may keep the weights, tried in order. Raises Refused where the file has none.
    """
    loaded = load(path)
    state = find_state(loaded, path, sections)
    flipped = transposed_keys(model)
    return state if is_paddle_layout(loaded, state, model, flipped) else relayout(state, flipped)


def find_state(loaded: Loaded, path, sections: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The first section that is present, or the whole file, as {name: array}, a common wrapper prefix removed."""
    tree = loaded.tree
    if loaded.format == "ppssl":
        tree = {key[len("model."):]: value for key, value in tree.items() if key.startswith("model.")}
    elif isinstance(tree, Mapping):
        tree = next((tree[s] for s in sections if isinstance(tree.get(s), Mapping)), tree)
    state = {k: v for k, v in tree.items() if isinstance(v, np.ndarray)} if isinstance(tree, Mapping) else {}
    if not state:
        raise Refused(f"{path} holds no weights: expected tensors by name, or under one of {', '.join(sections)}")
    for prefix in PREFIXES:
        if all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def is_paddle_layout(loaded: Loaded, state: Mapping[str, np.ndarray], model, flipped: frozenset[str]) -> bool:
    """Whether the Linear weights of a file are Paddle's: known from its format, for safetensors from the shapes."""
    if loaded.format != "safetensors":
        return loaded.format in ("paddle", "ppssl")
    own = model.state_dict()
    votes = [list(state[k].shape) == list(own[k].shape) for k in flipped
             if k in state and k in own and own[k].shape[0] != own[k].shape[1] and sorted(state[k].shape) == sorted(own[k].shape)]
    return bool(votes) and sum(votes) * 2 > len(votes)
