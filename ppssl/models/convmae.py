"""ConvMAE: masked autoencoder with a hybrid encoder (Gao et al., arXiv 2205.03892)."""
from math import prod

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppssl.models.convvit import BASE, TINY, ConvEncoder
from ppssl.models.cpu import LayerNorm, Linear
from ppssl.models.layers import Block, fixed_table, token, xavier, xavier_conv
from ppssl.models.masking import gather_tokens, masked_pixel_loss, random_masking, unpatchify
from ppssl.models.pos_embed import sincos_table
from ppssl.models.registry import register


class MaskedAutoencoderConvViT(ConvEncoder):
    """Block-wise masking in all stages: the encoder sees the visible patches, a light ViT decoder predicts all of them.

    The depthwise convolutions take masked positions as zero; whatever else the official code computes there reaches no
    visible token, and is left out. The decoder takes `decoder_mlp_ratio`, or the first of `mlp_ratio`.
    Source: paper section 3; Alpha-VL/ConvMAE `models_convmae.py`.
    """

    def __init__(self, img_size=224, *, patch_size, in_chans: int = 3, embed_dim, depth, num_heads: int, mlp_ratio,
                 decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
                 decoder_mlp_ratio: float | None = None, eps: float = 1e-6, norm_pix_loss: bool = False):
        init, dim = xavier(), embed_dim[2]
        super().__init__(img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, eps,
                         drop_path_rate=0.0, fuse=True, init=init,
                         embed_init=xavier_conv(embed_dim[1], dim, patch_size[2]))
        self.norm_pix_loss = norm_pix_loss
        self.pos_embed = fixed_table(self, sincos_table(dim, self.grid))
        self.mask_token = token(self, 1, 1, decoder_embed_dim)
        self.decoder_pos_embed = fixed_table(self, sincos_table(decoder_embed_dim, self.grid))
        self.norm = LayerNorm(dim, epsilon=eps)
        self.decoder_embed = Linear(dim, decoder_embed_dim, weight_attr=init)
        ratio = mlp_ratio[0] if decoder_mlp_ratio is None else decoder_mlp_ratio
        self.decoder_blocks = nn.LayerList(
            [Block(decoder_embed_dim, decoder_num_heads, ratio, eps, init=init) for _ in range(decoder_depth)])
        self.decoder_norm = LayerNorm(decoder_embed_dim, epsilon=eps)
        self.decoder_pred = Linear(decoder_embed_dim, prod(self.patch_size) * in_chans, weight_attr=init)

    def forward_encoder(self, images, noise, mask_ratio: float):
        """images [B, C, H, W], noise [B, N] -> latent [B, K, D], mask [B, N] (1 removed), ids_restore [B, N]."""
        ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
        return self.fused_tokens(images, ids_keep, ids_restore), mask, ids_restore

    def fused_tokens(self, images, ids_keep, ids_restore):
        """The visible tokens [M, K, D] with what stages 1 and 2 add, normalised; arguments as `encode` takes them."""
        positions = gather_tokens(self.pos_embed.expand([ids_keep.shape[0], -1, -1]), ids_keep)
        stage1, stage2, x = self.encode(images, ids_keep, ids_restore, positions)
        return self.norm(x + self.stage1_output_decode(stage1) + self.stage2_output_decode(stage2))

    def forward_decoder(self, latent, ids_restore):
        """latent [M, K, D], ids_restore [M, N] -> pred [M, N, p*p*C], the pixels of every patch."""
        x = self.decoder_embed(latent)
        hidden = ids_restore.shape[1] - x.shape[1]
        mask_tokens = self.mask_token.astype(x.dtype).expand([x.shape[0], hidden, -1])
        x = gather_tokens(paddle.concat([x, mask_tokens], axis=1), ids_restore) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))

    def to_image(self, pred):
        """pred [M, N, p*p*C] -> [M, C, H, W]."""
        return unpatchify(pred, self.patch_size, self.grid)

    def features(self, images):
        """images [B, C, H, W] -> [B, D]: stage 3's mean token, nothing masked, normalised as in a new classifier."""
        x = self.encode(images, *self.all_visible(images.shape[0]), self.pos_embed)[2].mean(1)
        return F.layer_norm(x, x.shape[1:], epsilon=self.norm._epsilon)

    def forward(self, images, noise=None, mask_ratio: float = 0.75):
        """images [B, C, H, W], noise [B, N] uniform (drawn here if None) -> loss [], pred [M, N, p*p*C], mask [M, N].

        M = B; where an image has several views, all images' first views come first, then the second ones, and so on.
        """
        noise = paddle.rand([images.shape[0], self.num_patches]) if noise is None else noise
        latent, mask, ids_restore = self.forward_encoder(images, noise, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        targets = images.tile([latent.shape[0] // images.shape[0], 1, 1, 1])
        return masked_pixel_loss(targets, pred, mask, self.patch_size, self.norm_pix_loss), pred, mask


TINY_DECODER = dict(decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4)


@register("pretrain", "convmae")
def convmae_convvit_tiny_patch4(**kwargs):
    """For the embedded 32 px demo set and the tests; not a published size."""
    return MaskedAutoencoderConvViT(**TINY | TINY_DECODER | dict(img_size=32) | kwargs)


@register("pretrain", "convmae", "convmae_convvit_base_patch16_dec512d8b")
def convmae_convvit_base_patch16(**kwargs):
    return MaskedAutoencoderConvViT(**BASE | kwargs)
