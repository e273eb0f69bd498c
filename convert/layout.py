"""Which tensors change their layout between PyTorch and Paddle, read off the built model.

Parameters carry the official names, so a name needs no map; only Linear weights are stored the other way round
([in, out] in Paddle, [out, in] in PyTorch). That follows from the layer that owns the tensor, never from its shape.
"""
from collections.abc import Mapping

import numpy as np


def transposed_keys(model) -> frozenset[str]:
    """The names of the model's tensors that PyTorch stores transposed: the weights of its Linear layers."""
    from paddle import nn

    return frozenset(f"{name}.weight" if name else "weight"
                     for name, layer in model.named_sublayers(include_self=True) if isinstance(layer, nn.Linear))


def relayout(tensors: Mapping[str, np.ndarray], transposed: frozenset[str]) -> dict[str, np.ndarray]:
    """Carry tensors from one framework's layout to the other's (its own inverse). Views, nothing is copied."""
    return {key: value.T if key in transposed else value for key, value in tensors.items()}
