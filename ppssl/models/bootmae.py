"""BootMAE (Dong et al., "Bootstrapped Masked Autoencoders for Vision BERT Pretraining", arXiv 2207.07116)."""
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.nn import initializer as I

from ppssl.models.boot_blocks import Block, DecoderBlock, pretraining_inits, truncated_normal
from ppssl.models.cpu import LayerNorm, Linear, linear
from ppssl.models.layers import (PatchEmbed, conv_default, fixed_table, linear_drop_path, normal, token, xavier,
                                 xavier_conv)
from ppssl.models.masking import gather_tokens, restore_tokens
from ppssl.models.pos_embed import sincos_table
from ppssl.models.registry import register


def shuffled_order(blocks, noise, roll):
    """The order in which patches are shown: those outside the block mask first, within each part at random.

    blocks [B, L] 0/1 (1 masked), noise [B, L] uniform, roll [B] int64: so many patches, the last ones and thus masked,
    come to the front and become visible. Returns [B, L] int64. Source: LightDXY/BootMAE `utils.py:mask_to_index`.
    """
    order = paddle.argsort(1.0 - ((1.0 - blocks.astype("float32")) + noise), axis=1)
    length = order.shape[1]
    places = (paddle.arange(length).unsqueeze(0) - roll.unsqueeze(1)) % length
    return paddle.take_along_axis(order, places, axis=1)


def hidden_mask(order, mask_num: int):
    """order [B, L], its last `mask_num` hidden -> mask [B, L] float32 (1 hidden, image order) and the inverse order."""
    restore = paddle.argsort(order, axis=1)
    return (restore >= order.shape[1] - mask_num).astype("float32"), restore


class PixelHead(nn.Layer):
    """Tokens [B, h*w, D] -> image [B, C, H, W]: a transposed convolution without overlap, as a matrix product."""

    def __init__(self, dim: int, in_chans: int, patch: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        init = conv_default(in_chans * patch[0] * patch[1])
        self.proj = nn.Conv2DTranspose(dim, in_chans, patch, stride=patch, weight_attr=init, bias_attr=init)
        self.patch, self.grid = patch, grid

    def product_macs(self, x) -> int:
        """Multiply-adds for x [B, h*w, D]."""
        return x.shape[0] * x.shape[1] * self.proj.weight.size

    def forward(self, x):
        weight, (ph, pw), (h, w) = self.proj.weight, self.patch, self.grid
        bias = self.proj.bias.unsqueeze(1).expand([-1, ph * pw]).flatten()
        x = linear(x, weight.flatten(1), bias).reshape([x.shape[0], h, w, -1, ph, pw])
        return x.transpose([0, 3, 1, 4, 2, 5]).reshape([x.shape[0], -1, h * ph, w * pw])


class BootMAE(nn.Layer):
    """A ViT encoder on the visible patches; one decoder for the pixels, one for the features of a teacher.

    Both decoders attend to raw encoder features, so that the latent need not carry what a target shares with the
    input: the pixel decoder to those of block fea_list[0], the feature decoder to those of block fea_list[-1].
    Source: paper section 3; LightDXY/BootMAE `models/modeling_pretrain_bootmae.py`.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans: int = 3, embed_dim: int = 768, depth: int = 12,
                 num_heads: int = 12, mlp_ratio: float = 4.0, decode_dim: int = 512, decoder_depth: int = 2,
                 fea_list=(0, 6), drop_path_rate: float = 0.0, eps: float = 1e-6):
        super().__init__()
        self.fea_list = tuple(fea_list)
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        grid, patch = self.patch_embed.grid, self.patch_embed.patch_size
        self.patch_embed.proj = nn.Conv2D(in_chans, embed_dim, patch, patch, bias_attr=I.Constant(0.0),
                                          weight_attr=xavier_conv(in_chans, embed_dim, patch))
        self.pos_embed = fixed_table(self, sincos_table(embed_dim, grid, extra_tokens=1, columns_first=False))
        self.de_pos_embed = fixed_table(self, sincos_table(decode_dim, grid, extra_tokens=1, columns_first=False))
        self.cls_token = token(self, 1, 1, embed_dim, init=normal(1e-6))
        self.mask_token = token(self, 1, 1, decode_dim, init=truncated_normal([1, 1, decode_dim], 0.02, 0.02))
        self.mask_token_1 = token(self, 1, 1, embed_dim, init=truncated_normal([1, 1, embed_dim], 0.02, 0.02))

        def decoder(dim: int) -> nn.LayerList:
            inits = pretraining_inits(dim, num_heads)
            return nn.LayerList([DecoderBlock(dim, embed_dim, num_heads, mlp_ratio, eps, inits)
                                 for _ in range(decoder_depth)])

        inits = pretraining_inits(embed_dim, num_heads)
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, mlp_ratio, eps, inits, rate)
                                    for rate in linear_drop_path(drop_path_rate, depth)])
        self.norm = LayerNorm(embed_dim, epsilon=eps)
        self.decode_blocks = decoder(decode_dim)
        self.decode_norm = LayerNorm(decode_dim, epsilon=eps)
        self.down = Linear(embed_dim, decode_dim, weight_attr=xavier())
        self.lm_head = PixelHead(decode_dim, in_chans, patch, grid)
        self.decode_blocks_1 = decoder(embed_dim)
        self.down_1 = Linear(embed_dim, embed_dim, weight_attr=xavier())
        self.decode_norm_1 = LayerNorm(embed_dim, epsilon=eps)
        self.lm_head_1 = Linear(embed_dim, embed_dim, weight_attr=xavier())

    no_weight_decay = ("pos_embed", "cls_token")

    @property
    def num_patches(self) -> int:
        return self.pos_embed.shape[1] - 1

    def embed(self, images):
        """images [B, C, H, W] -> cls token [B, 1, D] and patch tokens [B, L, D] with their positions."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        return (self.cls_token + self.pos_embed[:, :1]).expand([x.shape[0], -1, -1]), x

    def forward_encoder(self, images, order, mask_num: int):
        """images [B, C, H, W], order [B, L] -> latent [B, 1 + K, D] and the two decoders' memories, K = L - mask_num.

        Tokens are cls, then the first K patches as shuffled; memories are outputs of blocks, before any norm.
        """
        cls, x = self.embed(images)
        x = paddle.concat([cls, gather_tokens(x, order[:, :order.shape[1] - mask_num])], axis=1)
        outputs = []
        for block in self.blocks:
            outputs.append(x := block(x))
        return self.norm(x), outputs[self.fea_list[0]], outputs[self.fea_list[-1]]

    def forward(self, images, order, mask_num: int):
        """images [B, C, H, W], order [B, L] int64, of which the last mask_num patches are hidden.

        Returns the predicted pixels [B, C, H, W] and features [B, L, D] of all patches, in image order.
        """
        mask, restore = hidden_mask(order, mask_num)
        places = paddle.concat([paddle.zeros_like(mask[:, :1]), mask], axis=1).unsqueeze(-1)      # [B, 1 + L, 1]
        latent, *memories = self.forward_encoder(images, order, mask_num)
        x = restore_tokens(self.down(latent), self.mask_token, restore) + places * self.de_pos_embed
        for block in self.decode_blocks:
            x = block(x, memories[0])
        pixels = self.lm_head(self.decode_norm(x)[:, 1:])
        x = restore_tokens(self.down_1(latent), self.mask_token_1, restore) + places * self.pos_embed
        for block in self.decode_blocks_1:
            x = block(x, memories[1])
        return pixels, self.lm_head_1(self.decode_norm_1(x)[:, 1:])

    def patch_features(self, images):
        """images [B, C, H, W] -> the last block's patch tokens [B, L, D], nothing hidden, no norm: the target."""
        x = paddle.concat(self.embed(images), axis=1)
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]

    def features(self, images):
        """images [B, C, H, W] -> [B, D]: the mean patch token, normalised, as the linear probe takes it."""
        return F.layer_norm(self.patch_features(images).mean(1), self.pos_embed.shape[-1:], epsilon=1e-6)


@register("pretrain", "bootmae")
def bootmae_tiny_patch4(**kwargs):
    """For the embedded 32 px demo set and the tests; not a published size."""
    return BootMAE(**dict(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4, decode_dim=64,
                          decoder_depth=1, fea_list=(0, 3)) | kwargs)


@register("pretrain", "bootmae")
def bootmae_base(**kwargs):
    return BootMAE(**dict(embed_dim=768, depth=12, num_heads=12, fea_list=(0, 11)) | kwargs)


@register("pretrain", "bootmae")
def bootmae_large(**kwargs):
    return BootMAE(**dict(embed_dim=1024, depth=24, num_heads=16, fea_list=(0, 23)) | kwargs)
