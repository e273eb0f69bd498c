"""Convolutions whose Paddle kernel lays out its windows with one thread on CPU, with forward and backward passes of their own there."""
import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from ppssl.arrays import array, has_own, vector
from ppssl.models.cpu import training
from ppssl.threads import library, over


def matrix(weight) -> np.ndarray:
    """A convolution's weight [O, C, k, k] as [O, C * k * k]."""
    return vector(weight).reshape(weight.shape[0], -1)


class _Convolution(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, stride, padding):
        from ppssl import conv_kernels

        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        kernel = weight.shape[2]
        ctx.training, ctx.geometry = training(x, weight), (kernel, stride, padding)
        y = paddle.empty([x.shape[0], weight.shape[0], *((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])])
        images, flat, maps = array(x), matrix(weight), array(y)
        over(len(images), maps.size, lambda i, j: conv_kernels.convolve(images[i:j], flat, *ctx.geometry, maps[i:j]))
        return y

    @staticmethod
    def backward(ctx, dy):
        from ppssl import conv_kernels

        x, weight = ctx.saved_tensor()
        x_trains, weight_trains = ctx.training
        dx = paddle.empty_like(x) if x_trains else None
        images, flat, dmaps = array(x), matrix(weight), array(dy.contiguous())
        dimages = array(dx) if x_trains else np.empty((0, 0, 0, 0), np.float32)
        parts = over(len(images), dmaps.size, lambda i, j: conv_kernels.convolve_grad(images[i:j], flat, *ctx.geometry, dmaps[i:j], dimages[i:j]))
        dweight, *others = parts
        for other in others:
            dweight += other
        return dx, paddle.to_tensor(dweight).reshape(weight.shape) if weight_trains else None


class Conv2D(nn.Conv2D):
    """nn.Conv2D with a square kernel, the same stride and padding both ways, no bias: [B, C, H, W] -> [B, O, H', W']."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, weight_attr=None):
        super().__init__(in_channels, out_channels, kernel, stride, padding, weight_attr=weight_attr, bias_attr=False)
        self.geometry = stride, padding

    def forward(self, x):
        fits = x.ndim == 4 and x.shape[1] == self.weight.shape[1]                               # otherwise Paddle says what is wrong
        if fits and has_own(x) and library("libmklml_intel.so"):
            return _Convolution.apply(x, self.weight, *self.geometry)
        return nn.Conv2D.forward(self, x)
