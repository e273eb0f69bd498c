"""What a forward pass costs: multiply-adds of the layers that carry them, counted by hooks on one real pass."""
from contextlib import contextmanager
from math import prod

from paddle import nn


class Cost:
    """Filled while `counting`: `flops` (2 per multiply-add), `step_flops` (with a backward pass of twice the work wherever
    gradients flow) and `activations` (numbers that leaf layers put out)."""

    def __init__(self):
        self.flops = self.step_flops = self.activations = 0

    def add(self, layer, inputs, output) -> None:
        macs = own_macs(layer, inputs, output)
        self.flops += 2 * macs
        if macs:
            self.step_flops += (2 if output.stop_gradient else 6) * macs
        if hasattr(output, "shape") and not list(layer.children()):
            self.activations += prod(output.shape)


def own_macs(layer, inputs, output) -> int:
    """Multiply-adds of a layer itself, without its sublayers. Attention-like layers state theirs as `product_macs(*inputs)`."""
    if isinstance(layer, nn.Linear):
        return prod(output.shape) * layer.weight.shape[0]
    if isinstance(layer, nn.Conv2D):
        return prod(output.shape) * prod(layer.weight.shape[1:])
    if isinstance(layer, nn.Conv2DTranspose):
        return prod(inputs[0].shape) * prod(layer.weight.shape[1:])
    return layer.product_macs(*inputs) if hasattr(layer, "product_macs") else 0


@contextmanager
def counting(*networks):
    """Count every forward pass through the networks: `with counting(model) as cost: model(x)`."""
    cost = Cost()
    hooks = [layer.register_forward_post_hook(cost.add) for network in networks
             for layer in network.sublayers(include_self=True)]
    try:
        yield cost
    finally:
        for hook in hooks:
            hook.remove()
