"""The frozen base model of TEC: a plain pretrained ViT (MAE, iBOT or any other) that sees the whole image."""
from typing import NamedTuple

import paddle

from ppssl.models.masking import gather_tokens
from ppssl.models.vit import VisionTransformer


class Targets(NamedTuple):
    """What a base model asks of the new one: features [B, N, D] of the patches, and of its last attention the logits
    [B, 1 + K, heads, N] of the cls token and of the K patches `top` [B, K] that it attends to most."""
    features: paddle.Tensor
    logits: paddle.Tensor | None = None
    top: paddle.Tensor | None = None


class BaseModel(VisionTransformer):
    """An encoder that only gives targets; without gradients, always in evaluation mode.

    Source: sail-sg/TEC `models/basemodel_vit.py`. `norm` stands in the files and is not part of the targets.
    """

    def __init__(self, **kwargs):
        super().__init__(num_classes=0, global_pool=False, **kwargs)
        self.eval()
        for p in self.parameters():
            p.stop_gradient, p.trainable = True, False

    @paddle.no_grad()
    def targets(self, images, last_layers: int, topk: int | None = None) -> Targets:
        """images [B, C, H, W] -> the mean output of the last blocks, and with `topk` the relations of the last one."""
        x, total, logits, top = self.embed(images), 0.0, None, None
        for left, block in zip(reversed(range(self.num_blocks)), self.blocks):
            if topk and not left:
                logits, top = patch_relations(block, x, topk)
            x = block(x)
            if left < last_layers:
                total = total + x[:, 1:]
        return Targets(total / last_layers, logits, top)


def patch_relations(block, x, topk: int):
    """Of a block's attention over x [B, 1 + N, D]: logits [B, 1 + K, heads, N] of the cls token and of the K patches it
    attends to most (mean logit over the heads), in falling order, and their index [B, K]."""
    query, key, _ = block.attn.split_heads(block.norm1(x))                     # [B, 1+N, heads, d]
    key, scale = key[:, 1:], query.shape[-1] ** -0.5
    cls = attention_logits(query[:, :1], key, scale)                           # [B, 1, heads, N]
    top = cls.mean(2).squeeze(1).topk(topk, axis=-1)[1]
    patches = select_patches(query, top)[:, 1:]
    return paddle.concat([cls, attention_logits(patches, key, scale)], axis=1), top


def select_patches(query, top):
    """query [B, 1 + N, heads, d], top [B, K] patch numbers -> [B, 1 + K, heads, d]: cls, then these patches."""
    rows = paddle.concat([paddle.zeros_like(top[:, :1]), top + 1], axis=1)
    return gather_tokens(query.flatten(2), rows).reshape([*rows.shape, *query.shape[2:]])


def attention_logits(query, key, scale: float):
    """query [B, K, heads, d], key [B, M, heads, d] -> scaled products [B, K, heads, M]."""
    products = paddle.matmul(query.transpose([0, 2, 1, 3]), key.transpose([0, 2, 3, 1])) * scale
    return products.transpose([0, 2, 1, 3])
