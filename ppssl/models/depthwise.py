"""The 5x5 convolution of each channel with itself, over maps kept token by token."""
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

from ppssl.models.layers import conv_default
from ppssl.models.nested import KERNEL, REACH, Rows


def with_nothing(x, count: int, axis: int):
    """x with `count` zeros after its end: what stands at hidden positions."""
    shape = list(x.shape)
    shape[axis] = count
    return paddle.concat([x, paddle.zeros(shape, x.dtype)], axis=axis)


def around(x, rows: Rows):
    """x [C, B * K * P] -> [C, B * K, W]: the window of positions in and around each visible token."""
    groups = with_nothing(x, rows.map.positions, axis=1).reshape([x.shape[0], -1, rows.map.group ** 2])
    return paddle.gather(groups, rows.windows, axis=1).reshape([x.shape[0], rows.batch * rows.kept, -1])


def as_matrices(kernel, rows: Rows):
    """kernel [C, 25] -> [C, W, P]: from a token's window to its own positions."""
    return paddle.matmul(kernel, rows.map.taps).reshape([kernel.shape[0], -1, rows.map.positions])


class _WindowProducts(PyLayer):
    """x [C, B * K * P], kernel [C, 25], bias [C] -> [C, B * K * P], by one small matrix product per token and channel.

    The gradient for x is the same convolution of the output's gradient with the kernel turned by 180 degrees.
    """

    @staticmethod
    def forward(ctx, x, kernel, bias, rows):
        ctx.save_for_backward(x, kernel)
        ctx.rows = rows
        return paddle.matmul(around(x, rows), as_matrices(kernel, rows)).reshape(x.shape) + bias.unsqueeze(1)

    @staticmethod
    def backward(ctx, dy):
        (x, kernel), rows = ctx.saved_tensor(), ctx.rows
        window = around(dy, rows)                                                              # [C, B * K, W]
        dx = paddle.matmul(window, as_matrices(kernel.flip(1), rows)).reshape(x.shape)
        own = x.reshape([x.shape[0], -1, rows.map.positions])
        pairs = paddle.matmul(window, own, transpose_x=True).reshape([x.shape[0], -1])         # [C, W * P]
        dbias = paddle.matmul(dy, paddle.ones([dy.shape[1], 1], dy.dtype)).squeeze(1)
        return dx, paddle.matmul(pairs, rows.map.taps, transpose_y=True).flip(1), dbias


class DepthwiseConv(nn.Conv2D):
    """Depthwise 5x5 convolution, zero outside the image and at hidden tokens: rows [B, K * P, C] -> the same.

    Paddle's CPU kernel takes 5 times as long as PyTorch's; a matrix product over each token's window does not.
    On GPU the maps are laid out and Paddle's convolution is used.
    """

    def __init__(self, dim: int):
        init = conv_default(KERNEL ** 2)
        super().__init__(dim, dim, KERNEL, padding=REACH, groups=dim, weight_attr=init, bias_attr=init)

    def forward(self, x, rows: Rows):
        convolve = self.on_windows if x.place.is_cpu_place() else self.on_maps
        return convolve(x.reshape([-1, x.shape[-1]]), rows).reshape(x.shape)

    def on_windows(self, x, rows: Rows):
        """x [B * K * P, C] -> the same."""
        return _WindowProducts.apply(x.t(), self.weight.flatten(1), self.bias, rows).t()

    def on_maps(self, x, rows: Rows):
        """x [B * K * P, C] -> the same."""
        size, dim = rows.map.size, x.shape[1]
        maps = paddle.gather(with_nothing(x, rows.map.positions, axis=0), rows.dense).reshape([rows.batch, *size, dim])
        maps = F.conv2d(maps.transpose([0, 3, 1, 2]), self.weight, self.bias, padding=REACH, groups=dim)
        return paddle.gather(maps.transpose([0, 2, 3, 1]).reshape([-1, dim]), rows.places(rows.batch))
