"""TEC, target-enhanced conditional pretraining ("Towards Sustainable Self-supervised Learning", arXiv 2210.11016)."""
from collections.abc import Mapping

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppssl.errors import BadRequest
from ppssl.models.cpu import LayerNorm, Linear
from ppssl.models.layers import Block, Mlp, PatchEmbed, fixed_table, token, xavier, xavier_conv
from ppssl.models.masking import gather_tokens, random_masking, restore_tokens
from ppssl.models.pos_embed import sincos_table
from ppssl.models.registry import register
from ppssl.models.tec_base import Targets, attention_logits, select_patches


class FeatureAdaptor(nn.Layer):
    """All levels of the encoder [B, T, depth * D] to one [B, T, D]: groups of consecutive layers, fused and summed.

    Its norms have eps 1e-5, not 1e-6. Source: sail-sg/TEC `models_tec_vit.py:FeatureAdaptor` (conditional adapter).
    """

    def __init__(self, embed_dim: int, depth: int, num_adap: int, hidden: int, init):
        super().__init__()
        if depth % num_adap:
            raise ValueError(f"{depth} layers do not divide into {num_adap} groups")
        self.adap_before = LayerNorm(embed_dim * depth, epsilon=1e-5)
        group = embed_dim * (depth // num_adap)
        self.fuse_fcs = nn.LayerList([Linear(group, embed_dim, weight_attr=init) for _ in range(num_adap)])
        self.adap_mlps = nn.LayerList([Mlp(embed_dim, hidden, init) for _ in range(num_adap)])
        self.adap_after = LayerNorm(embed_dim, epsilon=1e-5)

    def forward(self, levels):
        groups = self.adap_before(levels).chunk(len(self.fuse_fcs), axis=-1)
        fused = [fuse(group) for fuse, group in zip(self.fuse_fcs, groups)]
        return self.adap_after(sum(x + mlp(x) for x, mlp in zip(fused, self.adap_mlps)))


class Decoder(nn.Layer):
    """What each of TEC's two decoders owns; the blocks and the position table are lent to both."""

    def __init__(self, embed_dim: int, decoder_embed_dim: int, eps: float, init):
        super().__init__()
        self.mask_token = token(self, 1, 1, decoder_embed_dim)
        self.decoder_embed = Linear(embed_dim, decoder_embed_dim, weight_attr=init)
        self.decoder_norm = LayerNorm(decoder_embed_dim, epsilon=eps)

    def decode(self, latent, ids_restore, pos_embed, blocks):
        """latent [B, 1 + K, D], ids_restore [B, N] -> all tokens [B, 1 + N, Dd]."""
        x = restore_tokens(self.decoder_embed(latent), self.mask_token, ids_restore) + pos_embed
        for block in blocks:
            x = block(x)
        return self.decoder_norm(x)


class FeatureDecoder(Decoder):
    """Predicts the base model's features of every patch: [B, N, pred_dim]."""

    def __init__(self, embed_dim: int, pred_dim: int, decoder_embed_dim: int, eps: float, init):
        super().__init__(embed_dim, decoder_embed_dim, eps, init)
        self.decoder_pred = Linear(decoder_embed_dim, pred_dim, weight_attr=init)

    def forward(self, latent, ids_restore, pos_embed, blocks):
        return self.decoder_pred(self.decode(latent, ids_restore, pos_embed, blocks))[:, 1:]


class AttentionDecoder(Decoder):
    """Predicts the base model's attention logits of the cls token and the patches `top` [B, K]: [B, 1 + K, heads, N].

    The products are scaled by pred_dim ** -0.5, not by the width of a head.
    """

    def __init__(self, embed_dim: int, pred_dim: int, decoder_embed_dim: int, num_heads: int, eps: float, init):
        super().__init__(embed_dim, decoder_embed_dim, eps, init)
        self.decoder_qk = Linear(decoder_embed_dim, 2 * pred_dim, weight_attr=init)
        self.num_heads, self.scale = num_heads, pred_dim ** -0.5

    def forward(self, latent, ids_restore, top, pos_embed, blocks):
        x = self.decode(latent, ids_restore, pos_embed, blocks)
        query, key = self.decoder_qk(x).reshape([x.shape[0], x.shape[1], 2, self.num_heads, -1]).unbind(2)
        return attention_logits(select_patches(query, top), key[:, 1:], self.scale)


class TECViT(nn.Layer):
    """A ViT encoder on the visible patches that predicts what a frozen base model sees in the whole image.

    pred_dim, pred_num_heads: width and heads of the base model (default: this model's own). att_tau: temperature of the
    base model's attention. Source: paper section 3; sail-sg/TEC `models_tec_vit.py`.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans: int = 3, embed_dim: int = 1024, depth: int = 24,
                 num_heads: int = 16, decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
                 mlp_ratio: float = 4.0, eps: float = 1e-6, mlp_token: bool = False, pred_att: bool = False,
                 att_tau: float = 1.8, num_adap: int | None = None, pred_num_heads: int | None = None,
                 pred_dim: int | None = None):
        super().__init__()
        init, pred_dim, self.att_tau = xavier(), pred_dim or embed_dim, att_tau
        patch_init = xavier_conv(in_chans, embed_dim, patch_size)
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, patch_init)
        grid = self.patch_embed.grid
        self.cls_token = token(self, 1, 1, embed_dim)
        self.pos_embed = fixed_table(self, sincos_table(embed_dim, grid, extra_tokens=1))
        self.decoder_pos_embed = fixed_table(self, sincos_table(decoder_embed_dim, grid, extra_tokens=1))
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, mlp_ratio, eps, init=init) for _ in range(depth)])
        self.norm = LayerNorm(embed_dim, epsilon=eps)
        self.cls_token_mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), init) if mlp_token else None
        groups = num_adap or max(depth // 3, 1)
        self.encoder_adaptor = FeatureAdaptor(embed_dim, depth, groups, 4 * decoder_embed_dim, init)
        sizes, heads = (embed_dim, pred_dim, decoder_embed_dim), pred_num_heads or num_heads
        self.forward_fea_decoder = FeatureDecoder(*sizes, eps, init)
        self.forward_att_decoder = AttentionDecoder(*sizes, heads, eps, init) if pred_att else None
        self.decoder_blocks = nn.LayerList(
            [Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, eps, init=init) for _ in range(decoder_depth)])

    @property
    def num_patches(self) -> int:
        return self.pos_embed.shape[1] - 1

    def input_token(self):
        """The cls token [1, 1, D] as it goes in: through an MLP without residual where there is one (input adapter)."""
        return self.cls_token if self.cls_token_mlp is None else self.cls_token_mlp(self.cls_token)

    def forward_encoder(self, images, noise, mask_ratio: float):
        """images [B, C, H, W], noise [B, N] -> levels [B, 1 + K, depth * D], mask [B, N], ids_restore [B, N].

        levels: the outputs of all blocks (cls first), the last one's after `norm`.
        """
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
        cls = (self.input_token() + self.pos_embed[:, :1]).expand([x.shape[0], -1, -1])
        x = paddle.concat([cls.astype(x.dtype), gather_tokens(x, ids_keep)], axis=1)
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        levels[-1] = self.norm(x).astype(x.dtype)
        return paddle.concat(levels, axis=-1), mask, ids_restore

    def features(self, images):
        """images [B, C, H, W] -> [B, D]: the mean patch token, nothing masked."""
        order = paddle.arange(self.num_patches, dtype="float32").expand([images.shape[0], -1])
        return self.forward_encoder(images, order, mask_ratio=0.0)[0][:, 1:, -self.cls_token.shape[-1]:].mean(1)

    def forward(self, images, noise, mask_ratio: float, targets: Targets) -> dict:
        """images [B, C, H, W], noise [B, N] uniform -> the losses by name, each [] and of weight 1."""
        levels, mask, ids_restore = self.forward_encoder(images, noise, mask_ratio)
        latent, shared = self.encoder_adaptor(levels), (self.decoder_pos_embed, self.decoder_blocks)
        pred = self.forward_fea_decoder(latent, ids_restore, *shared)
        losses = {"loss_fea": feature_loss(targets.features, pred, mask)}
        if self.forward_att_decoder is not None:
            pred = self.forward_att_decoder(latent, ids_restore, targets.top, *shared)
            losses["loss_att"] = attention_loss(targets.logits, pred, self.att_tau)
        return losses


def normalize_channels(features):
    """features [B, N, D] -> float32: each channel of an image with zero mean and unit (unbiased) variance over N."""
    x = features.astype("float32")
    x = x - x.mean(1, keepdim=True)
    return x / paddle.sqrt(x.square().sum(1, keepdim=True) / (x.shape[1] - 1) + 1e-6)


def feature_loss(target, pred, mask):
    """Mean squared error of the removed patches' normalised features; target, pred [B, N, D], mask [B, N]."""
    error = (pred.astype("float32") - normalize_channels(target)).square().mean(-1)           # [B, N]
    return (error * mask).sum() / mask.sum()


def attention_target(logits, tau: float):
    """The base model's attention at temperature tau: logits [..., N] -> float32 weights over the patches."""
    return F.softmax(logits.astype("float32") / tau, axis=-1)


def attention_loss(target, pred, tau: float):
    """Mean cross entropy of attention rows, logits [B, 1 + K, heads, N]; the temperature is on the target alone."""
    return -(attention_target(target, tau) * F.log_softmax(pred.astype("float32"), axis=-1)).sum(-1).mean()


def fold_token_mlp(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A TEC encoder as a plain ViT: cls_token := cls_token_mlp(cls_token), and the encoder's other tensors as they are.

    state: pretraining (or finetuned) weights by official name, Linear weights in PyTorch's layout [out, in]; so is the
    result. Raises BadRequest where there is no token MLP. Source: sail-sg/TEC `weight_convert.py`.
    """
    names = [f"cls_token_mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    if not set(names) <= set(state):
        raise BadRequest("the weights hold no cls_token_mlp, so there is nothing to fold: they may be used as they are")
    cls, w1, b1, w2, b2 = (paddle.to_tensor(np.array(state[k], np.float32)) for k in ("cls_token", *names))
    folded = F.linear(F.gelu(F.linear(cls, w1.T, b1)), w2.T, b2).numpy().astype(state["cls_token"].dtype)
    encoder = ("pos_embed", "patch_embed.", "blocks.")
    return {k: folded if k == "cls_token" else v for k, v in state.items() if k == "cls_token" or k.startswith(encoder)}


@register("pretrain", "tec")
def tec_vit_tiny_patch4(**kwargs):
    """For the embedded 32 px demo set and the tests, on a tiny MAE as base model; not a published size."""
    return TECViT(**dict(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4, decoder_embed_dim=64,
                         decoder_depth=2, decoder_num_heads=4, num_adap=2) | kwargs)


@register("pretrain", "tec")
def tec_vit_base_patch16(**kwargs):
    return TECViT(**dict(patch_size=16, embed_dim=768, depth=12, num_heads=12, decoder_embed_dim=512,
                         decoder_depth=2, decoder_num_heads=16) | kwargs)


@register("pretrain", "tec")
def tec_vit_large_patch16(**kwargs):
    return TECViT(**dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16, decoder_embed_dim=768,
                         decoder_depth=2, decoder_num_heads=16) | kwargs)
