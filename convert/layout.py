"""Which tensors change their layout between PyTorch and Paddle, read off the built model.

Parameters carry the official names, so a name needs no map; only Linear weights are stored the other way round
([in, out] in Paddle, [out, in] in PyTorch). That follows from the layer that owns the tensor, never from its shape.
"""
from collections.abc import Mapping

import numpy as np

# Paddle's own batch norm, in files that this project did not write (PASSL's): {its name: PyTorch's}
PADDLE_BUFFERS = {"_mean": "running_mean", "_variance": "running_var"}


def transposed_keys(model) -> frozenset[str]:
    """The names of the model's tensors that PyTorch stores transposed: the weights of its Linear layers."""
    from paddle import nn

    return frozenset(f"{name}.weight" if name else "weight"
                     for name, layer in model.named_sublayers(include_self=True) if isinstance(layer, nn.Linear))


def official_shapes(model) -> dict[str, tuple[int, ...]]:
    """{key: shape in PyTorch's layout} of every parameter and buffer, in the model's order; needs no memory."""
    flipped = transposed_keys(model)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return {key: shape[::-1] if key in flipped else shape for key, shape in shapes.items()}


def relayout(tensors: Mapping[str, np.ndarray], transposed: frozenset[str]) -> dict[str, np.ndarray]:
    """Carry tensors from one framework's layout to the other's (its own inverse). Views, nothing is copied."""
    return {key: value.T if key in transposed else value for key, value in tensors.items()}


def official_buffer(key: str) -> str:
    """Paddle's names of a batch norm's running statistics -> PyTorch's; any other key is returned as it is."""
    layer, _, name = key.rpartition(".")
    return f"{layer}.{PADDLE_BUFFERS[name]}" if name in PADDLE_BUFFERS else key
