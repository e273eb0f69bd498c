"""How BootMAE's classifiers take an encoder from a file."""
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from convert.formats import Loaded, load
from convert.layout import relayout, transposed_keys
from convert.weights import find_state, is_paddle_layout

AVERAGE = {"ema": "model_ema"}                            # section of this project's checkpoints -> official name
MARK = "encoder."


def read_encoder(path: str, model, model_key: str, model_prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of a file that are meant for `model`, by its keys and in Paddle's layout. Raises Refused where there are none.

    model_key: names of the section to take, the first present one of 'a|b'; without any the file itself is taken.
    model_prefix: what the file's keys begin with. Source: LightDXY/BootMAE `run_class_finetuning.py`.
    """
    loaded = official_form(load(path))
    state = find_state(loaded, path, tuple(model_key.split("|")))
    tensors = {key: state[held] for key, held in chosen_keys(state, model_prefix).items()}
    flipped = transposed_keys(model)
    return tensors if is_paddle_layout(loaded, tensors, model, flipped) else relayout(tensors, flipped)


def official_form(loaded: Loaded) -> Loaded:
    """A checkpoint of this project arranged as the official ones: weights by section, the average as 'model_ema'."""
    if loaded.format != "ppssl":
        return loaded
    tree: dict[str, dict] = {}
    for key, value in loaded.tree.items():
        section, name = key.split(".", 1)
        tree.setdefault(AVERAGE.get(section, section), {})[name] = value
    return replace(loaded, format="paddle", tree=tree)


def chosen_keys(held: Iterable[str], prefix: str = "") -> dict[str, str]:
    """{key of the model: key of the file}. If any key of the file holds 'encoder.', only such count, without it."""
    marked = {key.replace(MARK, ""): key for key in held if MARK in key}
    return {key.removeprefix(prefix): source for key, source in (marked or {k: k for k in held}).items() if key.startswith(prefix)}
