"""PyTorch operations on a raw official state dict, each output recorded under the official path of its layer."""
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class Tape:
    """The weights of one network and, in `stages`, the outputs of its layers in the order they were computed.

    state: {official key: tensor}. dtype: what the weights are cast to as they are used; float64 shows how much of a
    result is rounding. A layer that runs several times has several outputs.
    """

    def __init__(self, state: Mapping[str, Tensor], dtype: torch.dtype | None = None):
        self.state, self.dtype = state, dtype
        self.stages: dict[str, list[Tensor]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def weight(self, key: str) -> Tensor:
        """The tensor of an official key. Raises KeyError."""
        tensor = self.state[key]
        return tensor if self.dtype is None or not tensor.is_floating_point() else tensor.to(self.dtype)

    def bias(self, name: str) -> Tensor | None:
        return self.weight(f"{name}.bias") if f"{name}.bias" in self else None

    def keep(self, name: str, x: Tensor) -> Tensor:
        """Record the output of a stage; returns it."""
        self.stages.setdefault(name, []).append(x)
        return x

    def depth(self, name: str) -> int:
        """How many blocks a list of the network has."""
        return len({key[len(name) + 1:].split(".")[0] for key in self.state if key.startswith(f"{name}.")})

    def linear(self, name: str, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., in] -> [..., out]; bias: instead of the layer's own."""
        return self.keep(name, F.linear(x, self.weight(f"{name}.weight"), self.bias(name) if bias is None else bias))

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """Layer norm over the last axis."""
        weight = self.weight(f"{name}.weight")
        return self.keep(name, F.layer_norm(x, weight.shape, weight, self.weight(f"{name}.bias"), eps))

    def conv(self, name: str, x: Tensor, stride: int | tuple = 1, padding: int = 0, groups: int = 1) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']."""
        weight = self.weight(f"{name}.weight")
        return self.keep(name, F.conv2d(x, weight, self.bias(name), stride, padding, groups=groups))

    def patch_conv(self, name: str, x: Tensor) -> Tensor:
        """A convolution whose stride is its kernel."""
        return self.conv(name, x, stride=tuple(self.weight(f"{name}.weight").shape[2:]))

    def batch_norm(self, name: str, x: Tensor, eps: float, training: bool = False) -> Tensor:
        """With the running statistics, or (`training`) with the batch's own, the statistics left as they are."""
        weight = self.weight(f"{name}.weight") if f"{name}.weight" in self else None
        mean, var = (None, None) if training else (self.weight(f"{name}.running_{s}") for s in ("mean", "var"))
        return self.keep(name, F.batch_norm(x, mean, var, weight, self.bias(name), training=training, eps=eps))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """fc1, exact GELU, fc2."""
        return self.keep(name, self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x))))

    def patches(self, name: str, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, h*w, D]: a patch convolution, row-major."""
        return self.keep(name, self.patch_conv(f"{name}.proj", images).flatten(2).transpose(1, 2))

    def vit_attention(self, name: str, x: Tensor, heads: int) -> Tensor:
        """Self-attention with one biased qkv layer, [B, N, D] -> [B, N, D]."""
        q, k, v = split_heads(self.linear(f"{name}.qkv", x), 3, heads)
        return self.keep(name, self.linear(f"{name}.proj", merge_heads(attend(q, k, v))))

    def vit_block(self, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
        """The pre-norm transformer block."""
        x = x + self.vit_attention(f"{name}.attn", self.norm(f"{name}.norm1", x, eps), heads)
        return self.keep(name, x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x, eps)))

    def vit_blocks(self, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
        for i in range(self.depth(name)):
            x = self.vit_block(f"{name}.{i}", x, heads, eps)
        return x


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[B, N, parts*A] -> `parts` tensors [B, heads, N, A/heads]."""
    return x.reshape(*x.shape[:2], parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head width)) v, [B, heads, N, A]."""
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, N, A] -> [B, N, heads*A]."""
    return x.transpose(1, 2).flatten(2)


def gather(x: Tensor, ids: Tensor) -> Tensor:
    """x [B, N, D], ids [B, K] -> [B, K, D]."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[2]))
