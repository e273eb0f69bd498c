"""BootMAE's blocks: attention with BEiT's separate query and value biases, decoder blocks with cross-attention."""
import math
from typing import NamedTuple

import paddle
from paddle import nn
from paddle.nn import initializer as I

from ppssl.models.cpu import LayerNorm, Linear, attend, gelu
from ppssl.models.layers import drop_path, normal, token, xavier


class Inits(NamedTuple):
    """How the weights of a block start: `qkv`, the layers that end a branch (`out`), and all others (`inner`)."""
    qkv: I.Initializer
    inner: I.Initializer
    out: I.Initializer


def pretraining_inits(dim: int, num_heads: int) -> Inits:
    """Xavier uniform, query, key and value each seen as a matrix of its own."""
    return Inits(I.XavierUniform(fan_in=dim, fan_out=inner_width(dim, num_heads)), xavier(), xavier())


def classifier_inits(layer: int) -> Inits:
    """BEiT's: deviation 0.02, and 0.02 / sqrt(2 (layer + 1)) in what ends a branch of block `layer` (from 0)."""
    return Inits(normal(), normal(), normal(0.02 / math.sqrt(2 * (layer + 1))))


def truncated_normal(shape: list[int], std: float, cut: float) -> I.Initializer:
    """Normal(0, std) restricted to (-cut, cut), by the inverse of its distribution: Paddle's own differs by release."""
    edge = math.erf(cut / (std * math.sqrt(2)))
    return I.Assign((std * math.sqrt(2) * paddle.erfinv(paddle.uniform(shape, min=-edge, max=edge))).numpy())


def inner_width(dim: int, num_heads: int) -> int:
    """Width of all heads together: a head is floor(dim / heads) wide (512 over 12 heads: 42 each, 504 together)."""
    return num_heads * (dim // num_heads)


def free_bias(layer: nn.Layer, width: int):
    """A 1-D parameter of `layer` that starts at 0."""
    return token(layer, width, init=I.Constant(0.0))


class Attention(nn.Layer):
    """Multi-head self-attention, [B, N, D] -> [B, N, D]. The key has no bias: `qkv` takes (q_bias, 0, v_bias)."""

    def __init__(self, dim: int, num_heads: int, inits: Inits):
        super().__init__()
        width = inner_width(dim, num_heads)
        self.num_heads = num_heads
        self.q_bias, self.v_bias = free_bias(self, width), free_bias(self, width)
        self.qkv = Linear(dim, 3 * width, weight_attr=inits.qkv, bias_attr=False)
        self.proj = Linear(width, dim, weight_attr=inits.out)

    def split_heads(self, x):
        """[B, N, D] -> query, key, value, each [B, N, heads, d]."""
        bias = paddle.concat([self.q_bias, paddle.zeros_like(self.q_bias), self.v_bias])
        head_width = self.q_bias.shape[0] // self.num_heads
        return self.qkv(x, bias).reshape([x.shape[0], x.shape[1], 3, self.num_heads, head_width]).unbind(2)

    def product_macs(self, x) -> int:
        """Multiply-adds of query with key and of the weights with the values, for x [B, N, D]."""
        return 2 * x.shape[0] * x.shape[1] ** 2 * self.q_bias.shape[0]

    def forward(self, x):
        return self.proj(attend(*self.split_heads(x)))


class CrossAttention(nn.Layer):
    """Multi-head attention of x [B, N, D] on a memory [B, M, C] -> [B, N, D]. Keys have no bias."""

    def __init__(self, dim: int, memory_dim: int, num_heads: int, inits: Inits):
        super().__init__()
        width = inner_width(dim, num_heads)
        self.num_heads = num_heads
        self.q_bias, self.v_bias = free_bias(self, width), free_bias(self, width)
        self.q = Linear(dim, width, weight_attr=inits.inner, bias_attr=False)
        self.kv = Linear(memory_dim, 2 * width, weight_attr=inits.inner, bias_attr=False)
        self.proj = Linear(width, dim, weight_attr=inits.out)

    def product_macs(self, x, memory) -> int:
        """Multiply-adds of query with key and of the weights with the values."""
        return 2 * x.shape[0] * x.shape[1] * memory.shape[1] * self.q_bias.shape[0]

    def forward(self, x, memory):
        query = self.q(x, self.q_bias).reshape([x.shape[0], x.shape[1], self.num_heads, -1])
        bias = paddle.concat([paddle.zeros_like(self.v_bias), self.v_bias])
        pairs = self.kv(memory, bias).reshape([memory.shape[0], memory.shape[1], 2, self.num_heads, -1])
        return self.proj(attend(query, *pairs.unbind(2)))


class Mlp(nn.Layer):
    """fc1, exact GELU, fc2: [..., D] -> [..., D]."""

    def __init__(self, dim: int, hidden: int, inits: Inits):
        super().__init__()
        self.fc1 = Linear(dim, hidden, weight_attr=inits.inner)
        self.fc2 = Linear(hidden, dim, weight_attr=inits.out)

    def forward(self, x):
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Layer):
    """Pre-norm transformer block, [B, N, D] -> [B, N, D].

    drop_path: rate at which each of the two branches is dropped per sample while training.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, eps: float, inits: Inits, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = LayerNorm(dim, epsilon=eps)
        self.attn = Attention(dim, num_heads, inits)
        self.norm2 = LayerNorm(dim, epsilon=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), inits)
        self.drop_path = drop_path

    def forward(self, x, noise=None):
        """noise: [B, 2] uniform numbers deciding which samples lose the attention and the MLP branch."""
        rate = self.drop_path if self.training else 0.0
        first, second = (None, None) if noise is None else noise.unbind(1)
        x = x + drop_path(self.attn(self.norm1(x)), rate, first)
        return x + drop_path(self.mlp(self.norm2(x)), rate, second)


class DecoderBlock(Block):
    """Self-attention, cross-attention on encoder features, MLP: x [B, N, D], memory [B, M, C] -> [B, N, D]."""

    def __init__(self, dim: int, memory_dim: int, num_heads: int, mlp_ratio: float, eps: float, inits: Inits):
        super().__init__(dim, num_heads, mlp_ratio, eps, inits)
        self.norm3 = LayerNorm(dim, epsilon=eps)
        self.norm4 = LayerNorm(memory_dim, epsilon=eps)
        self.c_attn = CrossAttention(dim, memory_dim, num_heads, inits)

    def forward(self, x, memory):
        x = x + self.attn(self.norm1(x))
        x = x + self.c_attn(self.norm3(x), self.norm4(memory))
        return x + self.mlp(self.norm2(x))
