"""Batch normalisation with PyTorch's running statistics, its batch statistics taken over all ranks.

Paddle's own running variance is biased on CPU, and its synchronised kernel exists on GPU only. So its kernels are used
for what they put out and the running statistics are kept here; several ranks on CPU have a layer of their own.
"""
import paddle
import paddle.nn.functional as F
from paddle import _C_ops, nn
from paddle.autograd import PyLayer

from ppssl.dist import sum_over_ranks, world
from ppssl.models.cpu import column_sums


def channel_sums(x):
    """[B, C, ...] -> [C]."""
    return column_sums(x.flatten(2).sum(-1) if x.ndim > 2 else x)


class _NormalizeOverRanks(PyLayer):
    """x [B, C, ...] over the equal batches of all ranks -> y, mean [C], 1 / sqrt(biased variance + eps) [C]."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        shape = ctx.shape = [1, -1] + [1] * (x.ndim - 2)
        count = ctx.count = x.size // x.shape[1] * world()
        mean = sum_over_ranks(channel_sums(x)) / count
        centred = x - mean.reshape(shape)
        variance = sum_over_ranks(channel_sums(centred.square())) / count      # a second pass: no cancellation
        inv_std = paddle.rsqrt(variance + eps)
        normed = centred * inv_std.reshape(shape)
        ctx.save_for_backward(normed, inv_std, weight)
        return normed * weight.reshape(shape) + bias.reshape(shape), mean, inv_std

    @staticmethod
    def backward(ctx, dy, _mean, _inv_std):
        normed, inv_std, weight = ctx.saved_tensor()
        own = paddle.stack([channel_sums(dy), channel_sums(dy * normed)])      # this rank's: they are averaged elsewhere
        along, across = (s.reshape(ctx.shape) for s in (sum_over_ranks(own.clone()) / ctx.count).unbind(0))
        dx = (dy - along - normed * across) * (inv_std * weight).reshape(ctx.shape)
        return dx, own[1], own[0]


def normalize(x, weight, bias, eps: float):
    """x [B, C, ...] -> y, and of the batches of all ranks the mean [C] and 1 / sqrt(biased variance + eps) [C]."""
    if world() > 1 and x.place.is_cpu_place():
        return _NormalizeOverRanks.apply(x, weight, bias, eps)
    kernel = _C_ops.sync_batch_norm_ if world() > 1 else _C_ops.batch_norm
    unused = paddle.zeros_like(weight), paddle.ones_like(weight)               # the kernel's own running statistics
    y, _, _, mean, inv_std, _ = kernel(x, *unused, weight, bias, False, 0.9, eps, "NCHW", False, False)
    return y, mean, inv_std


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

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        weight, bias = (self.weight, self.bias) if self.affine else (paddle.ones_like(mean), paddle.zeros_like(mean))
        if not self.training:
            return F.batch_norm(x, mean, var, weight, bias, epsilon=self.eps)
        y, mean, inv_std = normalize(x, weight, bias, self.eps)
        self._track(mean, inv_std, x.size // x.shape[1] * world())
        return y

    @paddle.no_grad()
    def _track(self, mean, inv_std, count: int) -> None:
        unbiased = (1 / inv_std.square() - self.eps) * (count / max(count - 1, 1))
        for buffer, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            step = paddle.where(paddle.isfinite(new), new - buffer, paddle.zeros_like(buffer))
            buffer.add_(step * self.momentum)
        self.num_batches_tracked.add_(paddle.ones_like(self.num_batches_tracked))
