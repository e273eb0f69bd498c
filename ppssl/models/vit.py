"""Vision transformer classifier (Dosovitskiy et al., arXiv 2010.11929), as MAE finetunes it."""
import paddle
from paddle import nn

from ppssl.models.cpu import LayerNorm, Linear
from ppssl.models.layers import Block, Mlp, PatchEmbed, fixed_table, linear_drop_path, normal, token
from ppssl.models.pos_embed import sincos_table
from ppssl.models.registry import register


class VisionTransformer(nn.Layer):
    """ViT with a linear head on the mean patch token (`global_pool`) or on the cls token.

    Source: timm 0.3.2 `vision_transformer.py` under facebookresearch/mae `models_vit.py`.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans: int = 3, num_classes: int = 1000, embed_dim: int = 768,
                 depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4.0, eps: float = 1e-6,
                 drop_path_rate: float = 0.0, global_pool: bool = True):
        super().__init__()
        init = normal()
        self.global_pool = global_pool
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.grid = grid = self.patch_embed.grid
        self.cls_token = token(self, 1, 1, embed_dim)
        self.pos_embed = token(self, 1, 1 + grid[0] * grid[1], embed_dim)
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, mlp_ratio, eps, rate, init)
                                    for rate in linear_drop_path(drop_path_rate, depth)])
        if not global_pool:
            self.norm = LayerNorm(embed_dim, epsilon=eps)
        self.head = Linear(embed_dim, num_classes, weight_attr=init) if num_classes else nn.Identity()
        if global_pool:
            self.fc_norm = LayerNorm(embed_dim, epsilon=eps)

    pretraining_only = ("mask_token", "decoder_", "norm.", "encoder_adaptor.", "forward_fea_decoder.",
                        "forward_att_decoder.", "cls_token_mlp.")
    not_pretrained = ("head.", "fc_norm.")
    no_weight_decay = ("pos_embed", "cls_token")

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def num_layers(self) -> int:
        """Layers of layer-wise learning-rate decay: embedding, blocks, head."""
        return len(self.blocks) + 1

    def layer_of(self, name: str) -> int:
        """The layer a parameter belongs to: 0 the embedding, i + 1 block i, `num_layers` norm and head."""
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else self.num_layers

    def input_token(self):
        """The cls token [1, 1, D] as it goes in."""
        return self.cls_token

    def embed(self, images):
        """images [B, C, H, W] -> the blocks' input [B, 1 + N, D], cls first."""
        x = self.patch_embed(images)
        cls = self.input_token().expand([x.shape[0], -1, -1]).astype(x.dtype)
        return paddle.concat([cls, x], axis=1) + self.pos_embed

    def forward_features(self, images, noise=None):
        """images [B, C, H, W] -> features [B, D]. noise: [B, depth, 2] uniform, for drop path."""
        x = self.embed(images)
        for i, block in enumerate(self.blocks):
            x = block(x, None if noise is None else noise[:, i])
        return self.fc_norm(x[:, 1:].mean(1)) if self.global_pool else self.norm(x)[:, 0]

    def forward(self, images, noise=None):
        """images [B, C, H, W] -> logits [B, classes]."""
        return self.head(self.forward_features(images, noise))


class TECVisionTransformer(VisionTransformer):
    """The classifier as TEC finetunes it: its position table is fixed; `mlp_token` puts an MLP behind the cls token.

    Source: sail-sg/TEC `models/models_vit.py`, `util/lr_decay.py`.
    """

    def __init__(self, mlp_token: bool = False, mlp_ratio: float = 4.0, **kwargs):
        super().__init__(mlp_ratio=mlp_ratio, **kwargs)
        dim = self.cls_token.shape[-1]
        self.pos_embed = fixed_table(self, sincos_table(dim, self.grid, extra_tokens=1))
        self.cls_token_mlp = Mlp(dim, int(dim * mlp_ratio), normal()) if mlp_token else None

    def input_token(self):
        return self.cls_token if self.cls_token_mlp is None else self.cls_token_mlp(self.cls_token)

    def layer_of(self, name: str) -> int:
        """As in a plain ViT, but -1 for the cls token: a layer of its own, which learns at the last one's rate."""
        return -1 if name == "cls_token" else super().layer_of(name)


def classifier(mlp_token: bool = False, **kwargs) -> VisionTransformer:
    """MAE's classifier; with `mlp_token` TEC's, whose commands use MAE's model names."""
    return TECVisionTransformer(mlp_token=True, **kwargs) if mlp_token else VisionTransformer(**kwargs)


@register("classifier", "mae")
def vit_tiny_patch4(**kwargs):
    """The encoder of mae_vit_tiny_patch4."""
    return classifier(**dict(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4, num_classes=10) | kwargs)


@register("classifier", "mae", "maevit_base_patch16")
def vit_base_patch16(**kwargs):
    return classifier(**dict(patch_size=16, embed_dim=768, depth=12, num_heads=12) | kwargs)


@register("classifier", "mae", "maevit_large_patch16")
def vit_large_patch16(**kwargs):
    return classifier(**dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16) | kwargs)


@register("classifier", "mae", "maevit_huge_patch14")
def vit_huge_patch14(**kwargs):
    return classifier(**dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16) | kwargs)


@register("classifier", "tec")
def tec_vit_tiny_patch4(**kwargs):
    """The encoder of the pretraining model of that name."""
    return TECVisionTransformer(**dict(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4,
                                       num_classes=10) | kwargs)


@register("classifier", "tec")
def tec_vit_base_patch16(**kwargs):
    return TECVisionTransformer(**dict(patch_size=16, embed_dim=768, depth=12, num_heads=12) | kwargs)


@register("classifier", "tec")
def tec_vit_large_patch16(**kwargs):
    return TECVisionTransformer(**dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16) | kwargs)


@register("classifier", "tec")
def tec_vit_huge_patch14(**kwargs):
    return TECVisionTransformer(**dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16) | kwargs)
