"""FastConvMAE: ConvMAE with complementary masks (Alpha-VL/FastConvMAE; alibaba/EasyCV)."""
import paddle

from ppssl.errors import BadRequest
from ppssl.models.convmae import TINY_DECODER, MaskedAutoencoderConvViT
from ppssl.models.convvit import BASE, TINY
from ppssl.models.masking import random_masking
from ppssl.models.registry import register


def count_views(patches: int, mask_ratio: float) -> int:
    """The number V of an image's views at mask_ratio = 1 - 1/V. Raises BadRequest unless V >= 2 divides the patches."""
    possible = [v for v in range(2, patches + 1) if patches % v == 0]
    nearest = min(possible, key=lambda v: abs(1 - 1 / v - mask_ratio), default=None)
    if nearest is None or abs(1 - 1 / nearest - mask_ratio) > 1e-6:
        hint = f"the nearest is {1 - 1 / nearest:.6g}" if nearest else "choose a larger --input_size"
        raise BadRequest(f"FastConvMAE cannot part {patches} patches into views at --mask_ratio {mask_ratio:g}: {hint}")
    return nearest


class FastConvMAE(MaskedAutoencoderConvViT):
    """Every patch is visible in exactly one of V views of its image, all trained on in one pass.

    A view is a ConvMAE sample; results have M = V * B rows, view 1 of all images first. Parameters are ConvMAE's.
    Source: Alpha-VL/FastConvMAE `models_fastconvmae.py`, which has V = 4 at 196 patches only.
    """

    def forward_encoder(self, images, noise, mask_ratio: float):
        """images [B, C, H, W], noise [B, N] -> latent [M, K, D], mask [M, N], ids_restore [M, N] of each view."""
        batch, patches = noise.shape
        views = count_views(patches, mask_ratio)
        kept = patches // views
        shuffled, _, ids_restore = random_masking(noise, mask_ratio=0.0)
        ids_keep = shuffled.reshape([batch, views, kept]).transpose([1, 0, 2]).reshape([-1, kept])
        first = paddle.arange(views).reshape([-1, 1, 1]) * kept                        # the rank each view starts at
        ids_restore = ((ids_restore - first) % patches).reshape([-1, patches])
        mask = (ids_restore >= kept).astype("float32")
        return self.fused_tokens(images, ids_keep, ids_restore), mask, ids_restore


@register("pretrain", "fastconvmae")
def fastconvmae_convvit_tiny_patch4(**kwargs):
    """For the embedded 32 px demo set and the tests; not a published size."""
    return FastConvMAE(**TINY | TINY_DECODER | dict(img_size=32) | kwargs)


@register("pretrain", "fastconvmae", "fastconvmae_convvit_base_patch16_dec512d8b")
def fastconvmae_convvit_base_patch16(**kwargs):
    return FastConvMAE(**BASE | kwargs)
