"""`--recompute`: a block keeps its input alone for the backward pass and is computed again there.

Paddle's own recomputing does not do here: of its two ways one adds to a parameter's gradient at every use of a block, where
DataParallel counts on once, and the other crashes on layers with a backward pass of their own (ppssl/models/cpu.py).
"""
import contextlib

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppssl.engine.precision import autocast
from ppssl.errors import BadRequest


class _Recomputed(PyLayer):
    """run(*inputs), of which `count` tensors are given first, then the parameters that `run` uses."""

    @staticmethod
    def forward(ctx, run, count: int, amp: str | None, *tensors):
        ctx.run, ctx.count, ctx.amp, ctx.draws = run, count, amp, paddle.get_rng_state()
        ctx.save_for_backward(*tensors)
        with paddle.no_grad():
            return run(*tensors[:count])

    @staticmethod
    def backward(ctx, dy):
        saved = ctx.saved_tensor()
        inputs, parameters = [detached(t) for t in saved[:ctx.count]], saved[ctx.count:]
        with paddle.enable_grad(), autocast(ctx.amp), draws_from(ctx.draws):
            y = ctx.run(*inputs)
        wanted = [t for t in (*inputs, *parameters) if not t.stop_gradient]
        gradients = iter(paddle.grad(y, wanted, dy, allow_unused=True))
        return tuple(None if t.stop_gradient else next(gradients) for t in (*inputs, *parameters))


def detached(tensor):
    """The same values with a gradient of their own, if they have one."""
    copy = tensor.detach()
    copy.stop_gradient = tensor.stop_gradient
    return copy


@contextlib.contextmanager
def draws_from(state):
    """Draw random numbers from that state on, and go on with the present one afterwards."""
    now = paddle.get_rng_state()
    paddle.set_rng_state(state)
    try:
        yield
    finally:
        paddle.set_rng_state(now)


def recompute_blocks(model, amp: str | None) -> None:
    """Let every transformer or convolution block of `model` be recomputed; amp: dtype of the run's autocast or None.

    Raises BadRequest where there are none. (A ResNet has none: its batch norms would count every batch twice.)
    """
    blocks = [block for name, layer in model.named_sublayers() if isinstance(layer, nn.LayerList) and "blocks" in name for block in layer]
    if not blocks:
        raise BadRequest("--recompute is for the blocks of vision transformers, and nothing that is trained here has any: leave it out")
    for block in blocks:
        block.forward = recomputed(block.forward, [p for p in block.parameters() if not p.stop_gradient], amp)


def recomputed(forward, parameters: list, amp: str | None):
    """`forward`, remembering nothing but its arguments where gradients are taken."""
    def call(*args):
        if not paddle.is_grad_enabled():
            return forward(*args)
        places = [i for i, arg in enumerate(args) if isinstance(arg, paddle.Tensor)]

        def run(*tensors):
            given = dict(zip(places, tensors))
            return forward(*(given.get(i, arg) for i, arg in enumerate(args)))
        return _Recomputed.apply(run, len(places), amp, *(args[i] for i in places), *parameters)
    return call
