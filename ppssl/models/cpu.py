"""The pieces of a transformer whose Paddle kernels are slow on CPU, with forward and backward passes of their own there.

On GPU, in a program that is being traced for export, and for other types than float32, Paddle's own kernels are used.
"""
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

from ppssl.arrays import has_own, rows, vector
from ppssl.threads import over


def column_sums(x):
    """[M, N] -> [N], as a matrix product: Paddle's CPU sum over rows takes 50 times as long."""
    return paddle.matmul(paddle.ones([1, x.shape[0]], x.dtype), x).reshape([-1])


def training(*tensors) -> list[bool]:
    """Which inputs of a PyLayer take gradients; Paddle wants None for the others."""
    return [not tensor.stop_gradient for tensor in tensors]


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias):
        from ppssl import cpu_kernels

        ctx.save_for_backward(x, weight)
        ctx.training = training(x, weight, bias)
        y = paddle.matmul(x, weight)
        out, add = rows(y), vector(bias)
        over(len(out), out.size, lambda i, j: cpu_kernels.add_to_rows(out[i:j], add))
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        flat, dflat = x.reshape([-1, x.shape[-1]]), dy.reshape([-1, dy.shape[-1]])
        x_trains, weight_trains, bias_trains = ctx.training
        return (paddle.matmul(dy, weight, transpose_y=True) if x_trains else None,
                paddle.matmul(flat, dflat, transpose_x=True) if weight_trains else None,
                column_sums(dflat) if bias_trains else None)


class _LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        from ppssl import cpu_kernels

        ctx.training = training(x, weight, bias)
        x = x.contiguous()
        y, mean, inv_std = paddle.empty_like(x), *(paddle.empty(x.shape[:-1]) for _ in range(2))
        own, out, m, s, w, b = rows(x), rows(y), vector(mean), vector(inv_std), vector(weight), vector(bias)
        over(len(own), own.size, lambda i, j: cpu_kernels.layer_norm(own[i:j], w, b, eps, out[i:j], m[i:j], s[i:j]))
        ctx.save_for_backward(x, weight, mean, inv_std)
        return y

    @staticmethod
    def backward(ctx, dy):
        from ppssl import cpu_kernels

        x, weight, mean, inv_std = ctx.saved_tensor()
        dy = dy.contiguous()
        dx, dweight, dbias = paddle.empty_like(x), paddle.empty_like(weight), paddle.empty_like(weight)
        own, along, out, m, s, w = rows(x), rows(dy), rows(dx), vector(mean), vector(inv_std), vector(weight)
        sums = over(len(own), own.size, lambda i, j: cpu_kernels.layer_norm_grad(own[i:j], w, m[i:j], s[i:j], along[i:j], out[i:j]))
        vector(dweight)[:], vector(dbias)[:] = sum(sums)
        return tuple(d if trains else None for d, trains in zip((dx, dweight, dbias), ctx.training))


class _Gelu(PyLayer):
    @staticmethod
    def forward(ctx, x):
        from ppssl import cpu_kernels

        x = x.contiguous()
        y = paddle.empty_like(x)
        own, out = vector(x), vector(y)
        over(own.size, own.size, lambda i, j: cpu_kernels.gelu(own[i:j], out[i:j]))
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, dy):
        from ppssl import cpu_kernels

        (x,), dy = ctx.saved_tensor(), dy.contiguous()
        dx = paddle.empty_like(x)
        own, along, out = vector(x), vector(dy), vector(dx)
        over(own.size, own.size, lambda i, j: cpu_kernels.gelu_grad(own[i:j], along[i:j], out[i:j]))
        return dx


class _Attention(PyLayer):
    """query [B, N, heads, d], key and value [B, M, heads, d] -> [B, N, heads, d]."""

    @staticmethod
    def forward(ctx, query, key, value):
        from ppssl import cpu_kernels

        ctx.training, ctx.scale = training(query, key, value), query.shape[-1] ** -0.5
        query, key, value = (x.transpose([0, 2, 1, 3]).contiguous() for x in (query, key, value))
        weights = paddle.matmul(query, key, transpose_y=True)                                  # [B, heads, N, M]
        own = rows(weights)
        over(len(own), own.size, lambda i, j: cpu_kernels.softmax(own[i:j], ctx.scale))
        ctx.save_for_backward(query, key, value, weights)
        return paddle.matmul(weights, value).transpose([0, 2, 1, 3])

    @staticmethod
    def backward(ctx, dy):
        from ppssl import cpu_kernels

        query, key, value, weights = ctx.saved_tensor()
        dy = dy.transpose([0, 2, 1, 3])
        dvalue = paddle.matmul(weights, dy, transpose_x=True)
        dlogits = paddle.matmul(dy, value, transpose_y=True)
        own, along = rows(weights), rows(dlogits)
        over(len(own), own.size, lambda i, j: cpu_kernels.softmax_grad(own[i:j], along[i:j], ctx.scale))
        dquery, dkey = paddle.matmul(dlogits, key), paddle.matmul(dlogits, query, transpose_x=True)
        return tuple(d.transpose([0, 2, 1, 3]) if trains else None for d, trains in zip((dquery, dkey, dvalue), ctx.training))


def gelu(x):
    """The exact GELU, x * Phi(x), of x [...]."""
    return _Gelu.apply(x) if has_own(x) else F.gelu(x)


def attend(query, key, value):
    """Scaled dot-product attention: query [B, N, heads, d], key and value [B, M, heads, d] -> [B, N, heads * d]."""
    if has_own(query):
        return _Attention.apply(query, key, value).flatten(2)
    if query.shape[-1] % 8 == 0:                          # flash kernels take no other widths
        return F.scaled_dot_product_attention(query, key, value).flatten(2)
    query, key, value = (x.transpose([0, 2, 1, 3]) for x in (query, key, value))
    weights = F.softmax(paddle.matmul(query * query.shape[-1] ** -0.5, key, transpose_y=True), axis=-1)
    return paddle.matmul(weights, value).transpose([0, 2, 1, 3]).flatten(2)


def linear(x, weight, bias):
    """x [..., in] @ weight [in, out] + bias [out] or None."""
    if bias is not None and has_own(x):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear, [..., in] -> [..., out]."""

    def forward(self, x, bias=None):
        """bias: [out] tensor that takes the place of the layer's own."""
        return linear(x, self.weight, self.bias if bias is None else bias)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last axis."""

    def forward(self, x):
        if has_own(x) and x.shape[-1:] == self.weight.shape:                 # otherwise Paddle says what is wrong
            return _LayerNorm.apply(x, self.weight, self.bias, self._epsilon)
        return nn.LayerNorm.forward(self, x)              # Paddle 2's tracer knows no bare super()
