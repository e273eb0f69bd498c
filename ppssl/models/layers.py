"""The pieces every transformer here is made of. Attribute names are the official parameter names."""
import math

import paddle
from paddle import nn
from paddle.nn import initializer as I

from ppssl.errors import BadRequest
from ppssl.models.cpu import LayerNorm, Linear, attend, gelu


def pair(value) -> tuple[int, int]:
    """An int or a (height, width) sequence -> (height, width)."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def xavier() -> I.Initializer:
    """Xavier uniform over a Linear's own two sides: MAE's rule for every Linear."""
    return I.XavierUniform()


def normal(std: float = 0.02) -> I.Initializer:
    """Normal(0, std). timm's trunc_normal_ cuts at +-2 absolute, which at std 0.02 is never reached."""
    return I.Normal(0.0, std)


def conv_default(fan_in: int) -> I.Initializer:
    """PyTorch's default for convolution weights and biases: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return I.Uniform(-bound, bound)


def xavier_conv(in_chans: int, out_chans: int, kernel) -> I.Initializer:
    """Xavier uniform of a patch convolution seen as a matrix [out, in * kh * kw]."""
    kh, kw = pair(kernel)
    return I.XavierUniform(fan_in=in_chans * kh * kw, fan_out=out_chans)


def token(layer: nn.Layer, *shape: int, init: I.Initializer | None = None, trainable: bool = True):
    """A free parameter of `layer` (cls token, mask token, position table) of that shape."""
    parameter = layer.create_parameter(list(shape), default_initializer=init or normal())
    parameter.stop_gradient = not trainable
    parameter.trainable = trainable
    return parameter


def fixed_table(layer: nn.Layer, table):
    """A position table [1, N, D] that is stored with the weights and never trained."""
    return token(layer, *table.shape, init=I.Assign(table), trainable=False)


def drop_path(x, rate: float, noise):
    """Drop the branch x [B, ...] of whole samples with probability `rate`; the others are scaled by 1/(1 - rate).

    noise: [B] uniform in [0, 1), or None to draw it here. Source: timm 0.3.2 `layers/drop.py`.
    """
    if rate == 0.0:
        return x
    noise = paddle.rand([x.shape[0]]) if noise is None else noise
    keep = (noise >= rate).astype(x.dtype) / (1 - rate)
    return x * keep.reshape([-1] + [1] * (x.ndim - 1))


class PatchEmbed(nn.Layer):
    """Image to patch tokens: one strided convolution. [B, C, H, W] -> [B, h*w, D], row-major.

    Raises BadRequest where the image is not of the size the position table was made for.
    """

    def __init__(self, img_size, patch_size, in_chans: int, dim: int, init: I.Initializer | None = None):
        super().__init__()
        self.img_size, self.patch_size = pair(img_size), pair(patch_size)
        if any(s % p for s, p in zip(self.img_size, self.patch_size)):
            raise BadRequest(f"image size {self.img_size} is not a multiple of the patch size {self.patch_size}")
        self.grid = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        default = conv_default(in_chans * self.patch_size[0] * self.patch_size[1])
        self.proj = nn.Conv2D(in_chans, dim, self.patch_size, self.patch_size, weight_attr=init or default, bias_attr=default)

    def forward(self, x):
        if tuple(x.shape[2:]) != self.img_size:
            raise BadRequest(f"the model is built for {self.img_size} images and was given {tuple(x.shape[2:])}: set --input_size")
        return self.proj(x).flatten(2).transpose([0, 2, 1])


class Attention(nn.Layer):
    """Multi-head self-attention, [B, N, D] -> [B, N, D]; `qkv` holds query, key and value rows in that order."""

    def __init__(self, dim: int, num_heads: int, init: I.Initializer | None = None):
        super().__init__()
        if dim % num_heads:
            raise BadRequest(f"the width {dim} is not a multiple of the number of heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, weight_attr=init)
        self.proj = Linear(dim, dim, weight_attr=init)

    def split_heads(self, x):
        """[B, N, D] -> query, key, value, each [B, N, heads, D/heads]."""
        return self.qkv(x).reshape([x.shape[0], x.shape[1], 3, self.num_heads, x.shape[2] // self.num_heads]).unbind(2)

    def product_macs(self, x) -> int:
        """Multiply-adds of query with key and of the weights with the values, for x [B, N, D]."""
        return 2 * x.shape[0] * x.shape[1] ** 2 * self.qkv.weight.shape[0]

    def forward(self, x):
        return self.proj(attend(*self.split_heads(x)))


class Mlp(nn.Layer):
    """fc1, exact GELU, fc2: [..., D] -> [..., D]."""

    def __init__(self, dim: int, hidden: int, init: I.Initializer | None = None):
        super().__init__()
        self.fc1 = Linear(dim, hidden, weight_attr=init)
        self.fc2 = Linear(hidden, dim, weight_attr=init)

    def forward(self, x):
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Layer):
    """Pre-norm transformer block, [B, N, D] -> [B, N, D].

    drop_path: rate at which each of the two branches is dropped per sample while training.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6, drop_path: float = 0.0, init=None):
        super().__init__()
        self.norm1 = LayerNorm(dim, epsilon=eps)
        self.attn = Attention(dim, num_heads, init)
        self.norm2 = LayerNorm(dim, epsilon=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), init)
        self.drop_path = drop_path

    def forward(self, x, noise=None):
        """noise: [B, 2] uniform numbers deciding which samples lose the attention and the MLP branch."""
        rate = self.drop_path if self.training else 0.0
        first, second = (None, None) if noise is None else noise.unbind(1)
        x = x + drop_path(self.attn(self.norm1(x)), rate, first)
        return x + drop_path(self.mlp(self.norm2(x)), rate, second)


def linear_drop_path(rate: float, depth: int) -> list[float]:
    """Stochastic depth, linear from 0 at the first block to `rate` at the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]
