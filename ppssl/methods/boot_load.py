"""How BootMAE's classifiers take an encoder from a file."""
from collections.abc import Iterable

import numpy as np

from convert.formats import load
from convert.layout import relayout, transposed_keys
from convert.weights import find_state, is_paddle_layout

MARK = "encoder."


def read_encoder(path: str, model, model_key: str, model_prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of a file that are meant for `model`, by its keys and in Paddle's layout.

    model_key: names of the section to take, the first present one of 'a|b'; without any the file itself is taken.
    model_prefix: what the file's keys begin with. Raises Refused where the file holds no weights.
    Source: LightDXY/BootMAE `run_class_finetuning.py`.
    """
    loaded = load(path)
    state = find_state(loaded, path, tuple(model_key.split("|")))
    tensors = {key: state[held] for key, held in chosen_keys(state, model_prefix).items()}
    flipped = transposed_keys(model)
    return tensors if is_paddle_layout(loaded, tensors, model, flipped) else relayout(tensors, flipped)


def chosen_keys(held: Iterable[str], prefix: str = "") -> dict[str, str]:
    """{key of the model: key of the file}. If any key of the file holds 'encoder.', only such count, without it."""
    chosen = {key.replace(MARK, ""): key for key in held if MARK in key} or {key: key for key in held}
    return {key.removeprefix(prefix): source for key, source in chosen.items() if key.startswith(prefix)}
