"""Batch normalisation with PyTorch's running statistics, its batch statistics taken over all ranks."""
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppssl.dist import sum_over_ranks


class _Normalize(PyLayer):
    """x [B, C, ...] -> (x - mean) / sqrt(var + eps) over the batches of all ranks; also mean, var (biased) [C], count [1]."""

    @staticmethod
    def forward(ctx, x, eps):
        axes = [a for a in range(x.ndim) if a != 1]
        ctx.shape = [1, -1] + [1] * (x.ndim - 2)
        sums = sum_over_ranks(paddle.concat([x.sum(axes), paddle.full([1], x.size / x.shape[1])]))
        count, mean = sums[-1:], sums[:-1] / sums[-1]
        centred = x - mean.reshape(ctx.shape)
        var = sum_over_ranks(centred.square().sum(axes)) / count       # a second pass: no cancellation
        scale = paddle.rsqrt(var + eps)
        normed = centred * scale.reshape(ctx.shape)
        ctx.axes, ctx.mark = axes, None
        ctx.save_for_backward(normed, scale, count)
        return normed, mean, var, count

    @staticmethod
    def backward(ctx, dy, _mean, _var, _count):
        normed, scale, count = ctx.saved_tensor()
        sums = sum_over_ranks(paddle.stack([dy.sum(ctx.axes), (dy * normed).sum(ctx.axes)])) / count
        along, across = (s.reshape(ctx.shape) for s in sums.unbind(0))
        return (dy - along - normed * across) * scale.reshape(ctx.shape)


class BatchNorm(nn.Layer):
    """Over the channels of [B, C] or [B, C, H, W]. Buffers and their names are PyTorch's, so is the unbiased running variance.

    A batch whose statistics are not finite leaves the buffers as they are. Source: torch.nn.SyncBatchNorm.
    """

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        if affine:
            self.weight = self.create_parameter([dim], default_initializer=nn.initializer.Constant(1.0))
            self.bias = self.create_parameter([dim], is_bias=True)
        self.affine = affine
        self.register_buffer("running_mean", paddle.zeros([dim]))
        self.register_buffer("running_var", paddle.ones([dim]))
        self.register_buffer("num_batches_tracked", paddle.zeros([], "int64"))

    def forward(self, x):
        shape = [1, -1] + [1] * (x.ndim - 2)
        if self.training:
            y, mean, var, count = _Normalize.apply(x, self.eps)
            self._track(mean, var, count)
        else:
            y = (x - self.running_mean.reshape(shape)) * paddle.rsqrt(self.running_var + self.eps).reshape(shape)
        return y * self.weight.reshape(shape) + self.bias.reshape(shape) if self.affine else y

    @paddle.no_grad()
    def _track(self, mean, var, count) -> None:
        unbiased = var * (count / paddle.clip(count - 1, min=1))
        finite = paddle.isfinite(mean).all() & paddle.isfinite(var).all()
        for buffer, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            paddle.assign(paddle.where(finite, (1 - self.momentum) * buffer + self.momentum * new, buffer), buffer)
        paddle.assign(self.num_batches_tracked + finite.astype("int64"), self.num_batches_tracked)
