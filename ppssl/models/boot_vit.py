"""BootMAE's classifier: the encoder with a linear head, for finetuning and, cut to its first blocks, for probing."""
from paddle import nn

from ppssl.models.boot_blocks import Block, classifier_inits
from ppssl.models.cpu import LayerNorm, Linear
from ppssl.models.layers import PatchEmbed, fixed_table, linear_drop_path, normal, token
from ppssl.models.pos_embed import sincos_table
from ppssl.models.registry import register
from ppssl.models.vit import VisionTransformer


class BootVisionTransformer(VisionTransformer):
    """ViT with BEiT's attention and start, and a fixed position table; the forward pass is ViT's.

    Sources: LightDXY/BootMAE `models/modeling_finetune_bootmae.py`, `mae_util/models.py`.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans: int = 3, num_classes: int = 1000, embed_dim: int = 768,
                 depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4.0, eps: float = 1e-6,
                 drop_path_rate: float = 0.0, global_pool: bool = True):
        nn.Layer.__init__(self)                           # not ViT's: its blocks are others
        self.global_pool = global_pool
        self.cls_token = token(self, 1, 1, embed_dim, init=normal(1e-6))
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.grid = self.patch_embed.grid
        self.pos_embed = fixed_table(self, sincos_table(embed_dim, self.grid, extra_tokens=1, columns_first=False))
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, mlp_ratio, eps, classifier_inits(i), rate)
                                    for i, rate in enumerate(linear_drop_path(drop_path_rate, depth))])
        if global_pool:
            self.fc_norm = LayerNorm(embed_dim, epsilon=eps)
        else:
            self.norm = LayerNorm(embed_dim, epsilon=eps)
        self.head = Linear(embed_dim, num_classes, weight_attr=normal(2e-5)) if num_classes else nn.Identity()

    pretraining_only = ("mask_token", "de_pos_embed", "decode_", "down", "lm_head", "norm.")


@register("classifier", "bootmae")
def bootmae_tiny_patch4(**kwargs):
    """The encoder of the pretraining model of that name."""
    return BootVisionTransformer(**dict(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4,
                                        num_classes=10) | kwargs)


@register("classifier", "bootmae", "bootmae_base", "base_patch16_224")
def bootmae_base_patch16_224(**kwargs):
    return BootVisionTransformer(**dict(embed_dim=768, depth=12, num_heads=12) | kwargs)


@register("classifier", "bootmae", "bootmae_large", "large_patch16_224")
def bootmae_large_patch16_224(**kwargs):
    return BootVisionTransformer(**dict(embed_dim=1024, depth=24, num_heads=16) | kwargs)
