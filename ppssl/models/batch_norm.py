"""Batch normalisation with PyTorch's running statistics, its batch statistics taken over all ranks.

Paddle's own running variance is biased on CPU, and its synchronised kernel exists on GPU only. So its kernels are used
for what they put out on GPU, compiled loops on CPU, and the running statistics are kept here.
"""
import math
from functools import partial

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import _C_ops, nn
from paddle.autograd import PyLayer

from ppssl.arrays import has_own, rows, vector
from ppssl.dist import sum_over_ranks, world
from ppssl.models.cpu import training
from ppssl.threads import over


def maps(x) -> np.ndarray:
    """x [B, C, ...] as an array [B, C, P]; an empty one for None."""
    return np.empty((0, 0, 0), np.float32) if x is None else vector(x).reshape(*x.shape[:2], -1)


class _Normalize(PyLayer):
    """What `normalize` says."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, shortcut, relu):
        from ppssl import cpu_kernels

        ctx.training = training(x, weight, bias, *([] if shortcut is None else [shortcut]))
        x, channels = x.contiguous(), x.shape[1]
        count = x.size // channels
        ctx.lowest, ctx.count = 0.0 if relu else -math.inf, count * world()
        mean, inv_std, y = paddle.empty([channels]), paddle.empty([channels]), paddle.empty_like(x)
        own, out, means, spread, add = maps(x), maps(y), vector(mean), vector(inv_std), maps(None if shortcut is None else shortcut.contiguous())
        change = vector(weight), vector(bias), add, ctx.lowest, out
        if world() == 1:
            over(channels, own.size, partial(cpu_kernels.batch_norm_alone, own, *change, eps, means, spread))
        else:
            over(channels, own.size, partial(cpu_kernels.moments, own, means, spread))
            apart = mean.clone()
            mean.copy_(sum_over_ranks(mean) / world(), True)
            squares = sum_over_ranks(inv_std + count * (apart - mean).square())
            inv_std.copy_(paddle.rsqrt(squares / ctx.count + eps), True)
            over(channels, own.size, partial(cpu_kernels.batch_norm, own, means, spread, *change))
        ctx.save_for_backward(x, y.detach() if relu else x, mean.detach(), inv_std.detach(), weight)          # outputs themselves would make a cycle
        return y, mean, inv_std

    @staticmethod
    def backward(ctx, dy, _mean, _inv_std):
        from ppssl import cpu_kernels

        x, y, mean, inv_std, weight = ctx.saved_tensor()
        dy = dy.contiguous()
        sums, dx = paddle.empty([2, weight.shape[0]]), paddle.empty_like(x)
        dshortcut = paddle.empty_like(x) if len(ctx.training) == 4 else None
        given, by, into = (maps(x), vector(mean), vector(inv_std)), (maps(y), ctx.lowest, maps(dy)), (maps(dx), maps(dshortcut))
        if world() == 1:
            over(weight.shape[0], x.size, partial(cpu_kernels.batch_norm_grad_alone, *given, vector(weight), *by, *rows(sums), *into))
        else:
            over(weight.shape[0], x.size, partial(cpu_kernels.batch_norm_sums, *given, *by, *rows(sums)))
            means = sum_over_ranks(sums.clone()) / ctx.count  # the gradients stay this rank's: they are averaged elsewhere
            over(weight.shape[0], x.size, partial(cpu_kernels.batch_norm_grad, *given, vector(weight), *by, *rows(means), *into))
        return tuple(d if trains else None for d, trains in zip((dx, sums[1], sums[0], dshortcut), ctx.training))


def normalize(x, weight, bias, eps: float, shortcut, relu: bool):
    """x [B, C, ...] -> y, and of the equal batches of all ranks the mean [C] and 1 / sqrt(biased variance + eps) [C].

    shortcut: [B, C, ...] that is added to the normalised x, or None; relu: what is negative then becomes 0.
    """
    fits = x.shape[1] == weight.shape[0] and (shortcut is None or shortcut.shape == x.shape)   # otherwise Paddle says what is wrong
    if fits and has_own(x):
        return _Normalize.apply(x, weight, bias, eps, shortcut, relu)
    kernel = _C_ops.sync_batch_norm_ if world() > 1 else _C_ops.batch_norm
    unused = paddle.zeros_like(weight), paddle.ones_like(weight)               # the kernel's own running statistics
    y, _, _, mean, inv_std, _ = kernel(x, *unused, weight, bias, False, 0.9, eps, "NCHW", False, False)
    return activated(y, shortcut, relu), mean, inv_std


def activated(y, shortcut, relu: bool):
    """What may follow the normalisation in a residual block."""
    y = y if shortcut is None else y + shortcut
    return F.relu(y) if relu else y


class BatchNorm(nn.Layer):
    """Over the channels of [B, C] or [B, C, H, W]. Buffers, their names and the unbiased running variance are PyTorch's.

    Where a channel's batch statistics are not finite, its running ones stay. Every rank has to hold as many values.
    Source: torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm.
    """

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        super().__init__()
        self.eps, self.momentum, self.affine = eps, momentum, affine
        if affine:
            self.weight = self.create_parameter([dim], default_initializer=nn.initializer.Constant(1.0))
            self.bias = self.create_parameter([dim], is_bias=True)
        self.register_buffer("running_mean", paddle.zeros([dim]))
        self.register_buffer("running_var", paddle.ones([dim]))
        self.register_buffer("num_batches_tracked", paddle.zeros([], "int64"))

    def scale_and_shift(self) -> tuple:
        """[C] each."""
        mean = self.running_mean
        return (self.weight, self.bias) if self.affine else (paddle.ones_like(mean), paddle.zeros_like(mean))

    def forward(self, x):
        if self.training:
            return self._train(x, None, relu=False)
        return F.batch_norm(x, self.running_mean, self.running_var, *self.scale_and_shift(), epsilon=self.eps)

    def then_relu(self, x, shortcut=None):
        """relu(self(x) + shortcut). While training it is one operation, to which forward hooks are not called."""
        return self._train(x, shortcut, relu=True) if self.training else activated(self(x), shortcut, relu=True)

    def _train(self, x, shortcut, relu: bool):
        y, mean, inv_std = normalize(x, *self.scale_and_shift(), self.eps, shortcut, relu)
        self._track(mean, inv_std, x.size // x.shape[1] * world())
        return y

    @paddle.no_grad()
    def _track(self, mean, inv_std, count: int) -> None:
        unbiased = (1 / inv_std.square() - self.eps) * (count / max(count - 1, 1))
        for buffer, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            buffer.add_((paddle.where(paddle.isfinite(new), new, buffer) - buffer).scale_(self.momentum))
        self.num_batches_tracked.add_(paddle.ones_like(self.num_batches_tracked))
