"""Putting weights into a model and saying what did not fit."""
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LoadReport:
    """What a load did. missing: in the model only; unexpected: in the file only; mismatched: of another shape."""
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def assign(model, tensors: Mapping[str, np.ndarray]) -> LoadReport:
    """Copy tensors (Paddle layout) into the model's parameters and buffers of the same names and shapes."""
    own = model.state_dict()
    fits = {k: own[k].shape == list(v.shape) for k, v in tensors.items() if k in own}
    for key in (k for k, fit in fits.items() if fit):
        own[key].set_value(np.ascontiguousarray(tensors[key], dtype=numpy_dtype(own[key])).reshape(own[key].shape))
    return LoadReport(loaded=tuple(k for k, fit in fits.items() if fit),
                      missing=tuple(k for k in own if k not in tensors),
                      unexpected=tuple(k for k in tensors if k not in own),
                      mismatched=tuple(k for k, fit in fits.items() if not fit))


def assign_all(model, tensors: Mapping[str, np.ndarray]) -> None:
    """`assign` that raises ValueError unless every tensor of both sides found its partner."""
    report = assign(model, tensors)
    for what, keys in (("missing", report.missing), ("unexpected", report.unexpected), ("of another shape", report.mismatched)):
        if keys:
            raise ValueError(f"{len(keys)} tensors {what}, first {keys[0]}")


def numpy_dtype(tensor) -> np.dtype:
    """The numpy dtype of a Paddle tensor ('paddle.float32' -> float32)."""
    return np.dtype(str(tensor.dtype).rsplit(".", 1)[-1])
