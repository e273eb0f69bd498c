"""Masked autoencoder (He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377)."""
import paddle
from paddle import nn

from ppssl.models.cpu import LayerNorm, Linear
from ppssl.models.layers import Block, PatchEmbed, fixed_table, token, xavier, xavier_conv
from ppssl.models.masking import gather_tokens, masked_pixel_loss, random_masking, restore_tokens, unpatchify
from ppssl.models.pos_embed import sincos_table
from ppssl.models.registry import register


class MaskedAutoencoderViT(nn.Layer):
    """A ViT encoder on the visible patches and a light ViT decoder on all of them.

    Source: paper sections 3 and A.1; facebookresearch/mae `models_mae.py`.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans: int = 3, embed_dim: int = 1024, depth: int = 24,
                 num_heads: int = 16, decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
                 mlp_ratio: float = 4.0, eps: float = 1e-6, norm_pix_loss: bool = False):
        super().__init__()
        self.norm_pix_loss = norm_pix_loss
        init = xavier()
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, xavier_conv(in_chans, embed_dim, patch_size))
        grid, (ph, pw) = self.patch_embed.grid, self.patch_embed.patch_size
        self.cls_token = token(self, 1, 1, embed_dim)
        self.pos_embed = fixed_table(self, sincos_table(embed_dim, grid, extra_tokens=1))
        self.mask_token = token(self, 1, 1, decoder_embed_dim)
        self.decoder_pos_embed = fixed_table(self, sincos_table(decoder_embed_dim, grid, extra_tokens=1))
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, mlp_ratio, eps, init=init) for _ in range(depth)])
        self.norm = LayerNorm(embed_dim, epsilon=eps)
        self.decoder_embed = Linear(embed_dim, decoder_embed_dim, weight_attr=init)
        self.decoder_blocks = nn.LayerList(
            [Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, eps, init=init) for _ in range(decoder_depth)])
        self.decoder_norm = LayerNorm(decoder_embed_dim, epsilon=eps)
        self.decoder_pred = Linear(decoder_embed_dim, ph * pw * in_chans, weight_attr=init)

    @property
    def num_patches(self) -> int:
        return self.pos_embed.shape[1] - 1

    def forward_encoder(self, images, noise, mask_ratio: float):
        """images [B, C, H, W], noise [B, N] -> latent [B, 1 + K, D] (cls first), mask [B, N], ids_restore [B, N]."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand([x.shape[0], -1, -1])
        x = paddle.concat([cls, gather_tokens(x, ids_keep)], axis=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def forward_decoder(self, latent, ids_restore):
        """latent [B, 1 + K, D], ids_restore [B, N] -> pred [B, N, p*p*C], the pixels of every patch."""
        x = restore_tokens(self.decoder_embed(latent), self.mask_token, ids_restore) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def to_image(self, pred):
        """pred [B, N, p*p*C] -> [B, C, H, W]."""
        return unpatchify(pred, self.patch_embed.patch_size, self.patch_embed.grid)

    def features(self, images):
        """images [B, C, H, W] -> [B, D]: the mean patch token, nothing masked."""
        order = paddle.arange(self.num_patches, dtype="float32").expand([images.shape[0], -1])
        return self.forward_encoder(images, order, mask_ratio=0.0)[0][:, 1:].mean(1)

    def forward(self, images, noise=None, mask_ratio: float = 0.75):
        """images [B, C, H, W] float, noise [B, N] uniform (drawn here if None) -> loss [], pred [B, N, p*p*C], mask [B, N]."""
        noise = paddle.rand([images.shape[0], self.num_patches]) if noise is None else noise
        latent, mask, ids_restore = self.forward_encoder(images, noise, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        return masked_pixel_loss(images, pred, mask, self.patch_embed.patch_size, self.norm_pix_loss), pred, mask


@register("pretrain", "mae")
def mae_vit_tiny_patch4(**kwargs):
    """For the embedded 32 px demo set and the tests; not a published size."""
    return MaskedAutoencoderViT(**dict(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4, decoder_embed_dim=64,
                                       decoder_depth=2, decoder_num_heads=4) | kwargs)


@register("pretrain", "mae", "mae_vit_base_patch16_dec512d8b")
def mae_vit_base_patch16(**kwargs):
    return MaskedAutoencoderViT(**dict(patch_size=16, embed_dim=768, depth=12, num_heads=12) | kwargs)


@register("pretrain", "mae", "mae_vit_large_patch16_dec512d8b")
def mae_vit_large_patch16(**kwargs):
    return MaskedAutoencoderViT(**dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16) | kwargs)


@register("pretrain", "mae", "mae_vit_huge_patch14_dec512d8b")
def mae_vit_huge_patch14(**kwargs):
    return MaskedAutoencoderViT(**dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16) | kwargs)
