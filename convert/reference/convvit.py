"""ConvMAE and FastConvMAE (Alpha-VL/ConvMAE, Alpha-VL/FastConvMAE): pretraining and the classifier they share."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convert.reference.mae import patchify, pixel_loss, random_masking, unshuffle
from convert.reference.tape import Tape, gather
from convert.reference.vit import classify

CONV_EPS = 1e-5                                           # patch embeddings and convolution blocks; eps elsewhere


def channel_norm(tape: Tape, name: str, x: Tensor) -> Tensor:
    """Layer norm over the channels of [B, C, H, W]."""
    return tape.norm(name, x.permute(0, 2, 3, 1), CONV_EPS).permute(0, 3, 1, 2)


def embed(tape: Tape, name: str, x: Tensor) -> Tensor:
    """Strided convolution, norm, GELU."""
    return tape.keep(name, F.gelu(channel_norm(tape, f"{name}.norm", tape.patch_conv(f"{name}.proj", x))))


def conv_block(tape: Tape, name: str, x: Tensor, visible: list[Tensor], mask_after: bool) -> Tensor:
    """visible: maps [B, 1, H, W] (1 visible), one for each view, which the depthwise convolution sees apart.

    mask_after: FastConvMAE cuts each view's output with its own map as well. No maps: nothing is masked.
    """
    u = tape.conv(f"{name}.conv1", channel_norm(tape, f"{name}.norm1", x))
    width = tape.weight(f"{name}.attn.weight")
    options = {"padding": width.shape[2] // 2, "groups": len(width)}
    views = [tape.conv(f"{name}.attn", u * v, **options) * (v if mask_after else 1) for v in visible]
    x = x + tape.conv(f"{name}.conv2", sum(views) if views else tape.conv(f"{name}.attn", u, **options))
    u = F.gelu(tape.conv(f"{name}.mlp.fc1", channel_norm(tape, f"{name}.norm2", x)))
    return tape.keep(name, x + tape.conv(f"{name}.mlp.fc2", u))


def by_token(x: Tensor, grid: list[int], sides: list[int]) -> Tensor:
    """A map [B, C, H, W] as [B, N, P, C], the positions of each patch together; sides: of its nested groups."""
    n = len(sides)
    rows_and_columns = [axis for i in range(n) for axis in (3 + i, 4 + n + i)]
    split = x.reshape(*x.shape[:2], grid[0], *sides, grid[1], *sides)
    return split.permute(0, 2, 3 + n, *rows_and_columns, 1).reshape(len(x), math.prod(grid), -1, x.shape[1])


def keep_visible(tape: Tape, stage: int, kept: list[Tensor], grid: list[int], sides: list[int]) -> None:
    """Lay out what a stage recorded as the Paddle model does: [V*B, K*P, C], rows of each view's visible patches alone.

    kept: [B, K] of each view; where there are none, all patches are visible.
    """
    for name in [n for n in tape.stages if n.startswith((f"patch_embed{stage}", f"blocks{stage}."))]:
        maps = [x.permute(0, 3, 1, 2) if "norm" in name.rpartition(".")[2] else x for x in tape.stages[name]]
        tokens = [by_token(x, grid, sides).flatten(2) for x in maps]
        views = tokens if len(tokens) == len(kept) else tokens * max(1, len(kept))
        visible = [gather(x, ids) for x, ids in zip(views, kept)] if kept else tokens
        tape.stages[name] = [torch.cat(visible).reshape(sum(map(len, visible)), -1, maps[0].shape[1])]


def conv_stages(tape: Tape, images: Tensor, kept: list[Tensor], masks: list[Tensor], mask_after: bool
                ) -> tuple[list[Tensor], Tensor]:
    """The outputs of stages 1 and 2, and stage 3's tokens [B, N, D] with their positions. masks: [B, N], 1 removed."""
    x, outputs = images, []
    strides = [tape.weight(f"patch_embed{i}.proj.weight").shape[2:] for i in (1, 2, 3)]
    total = [math.prod(stride[axis] for stride in strides) for axis in (0, 1)]
    grid = [images.shape[2] // total[0], images.shape[3] // total[1]]
    for stage in (1, 2):
        x = embed(tape, f"patch_embed{stage}", x)
        maps = [F.interpolate(1 - m.reshape(-1, 1, *grid), size=x.shape[2:], mode="nearest") for m in masks]
        for i in range(tape.depth(f"blocks{stage}")):
            x = conv_block(tape, f"blocks{stage}.{i}", x, maps, mask_after)
        outputs.append(x)
        keep_visible(tape, stage, kept, grid, [s[0] for s in strides[:stage - 1:-1]])
    x = embed(tape, "patch_embed3", x).flatten(2).transpose(1, 2)
    keep_visible(tape, 3, kept, grid, [])
    x = tape.linear("patch_embed4", x)
    if kept:
        tape.keep("patch_embed4", torch.cat([gather(x, ids) for ids in kept]))
    return outputs, x + tape.weight("pos_embed")


def encode(tape: Tape, images: Tensor, kept: list[Tensor], masks: list[Tensor], mask_after: bool, heads: int,
           eps: float) -> Tensor:
    """The fused latent [V*B, K, D] of V views, view after view; kept: [B, K] visible patches of each."""
    (first, second), x = conv_stages(tape, images, kept, masks, mask_after)
    skips = [tape.patch_conv(f"stage{i}_output_decode", y).flatten(2).transpose(1, 2)
             for i, y in enumerate((first, second), start=1)]
    x, *skips = (torch.cat([gather(t, ids) for ids in kept]) for t in (x, *skips))
    for i, skip in enumerate(skips, start=1):
        tape.keep(f"stage{i}_output_decode", skip)
    x = tape.vit_blocks("blocks3", x, heads, eps)
    return tape.norm("norm", sum(skips, start=x), eps)


def decode(tape: Tape, tokens: Tensor, heads: int, eps: float) -> Tensor:
    """Tokens of all patches [B, N, Dd] -> pixels [B, N, P]."""
    x = tape.vit_blocks("decoder_blocks", tokens + tape.weight("decoder_pos_embed"), heads, eps)
    return tape.linear("decoder_pred", tape.norm("decoder_norm", x, eps))


def targets(tape: Tape, images: Tensor) -> Tensor:
    strides = [tape.weight(f"patch_embed{i}.proj.weight").shape[2:] for i in (1, 2, 3)]
    return patchify(images, *(math.prod(stride[axis] for stride in strides) for axis in (0, 1)))


def convmae(tape: Tape, images: Tensor, noise: Tensor, *, heads: int, decoder_heads: int, mask_ratio: float = 0.75,
            norm_pix_loss: bool = False, eps: float = 1e-6) -> dict[str, Tensor]:
    """images [B, C, H, W], noise [B, N] -> loss [], pred [B, N, P], latent [B, K, D], mask [B, N], ids_restore."""
    ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
    latent = encode(tape, images, [ids_keep], [mask], False, heads, eps)
    tokens = unshuffle(tape.linear("decoder_embed", latent), tape.weight("mask_token"), ids_restore)
    pred = decode(tape, tokens, decoder_heads, eps)
    loss = pixel_loss(targets(tape, images), pred, mask, norm_pix_loss)
    return {"loss": loss, "pred": pred, "latent": latent, "mask": mask, "ids_restore": ids_restore}


def fastconvmae(tape: Tape, images: Tensor, noise: Tensor, *, heads: int, decoder_heads: int, mask_ratio: float = 0.75,
                norm_pix_loss: bool = False, eps: float = 1e-6) -> dict[str, Tensor]:
    """As `convmae`, for V = 1 / (1 - mask_ratio) complementary views at once: rows of view 1, view 2, ..."""
    ids_keep, _, ids_restore = random_masking(noise, mask_ratio)
    k, n = ids_keep.shape[1], noise.shape[1]
    views = n // k
    ids_shuffle = noise.argsort(dim=1)
    kept = [ids_shuffle[:, i * k:(i + 1) * k] for i in range(views)]
    masks = [1 - ((ids_restore >= i * k) & (ids_restore < (i + 1) * k)).to(noise.dtype) for i in range(views)]
    latent = encode(tape, images, kept, masks, True, heads, eps)
    x = tape.linear("decoder_embed", latent)
    x = torch.cat([x, tape.weight("mask_token").expand(len(x), n - k, -1)], dim=1)
    x = torch.cat([part.roll(i * k, dims=1) for i, part in enumerate(x.chunk(views))])
    pred = decode(tape, gather(x, ids_restore.repeat(views, 1)), decoder_heads, eps)
    mask = torch.cat(masks)
    loss = pixel_loss(targets(tape, images).repeat(views, 1, 1), pred, mask, norm_pix_loss)
    return {"loss": loss, "pred": pred, "latent": latent, "mask": mask, "ids_restore": ids_restore}


def classifier(tape: Tape, images: Tensor, *, heads: int, eps: float = 1e-6, first: int = 0) -> dict[str, Tensor]:
    """images [B, C, H, W] -> features [B, D], logits where there is a head. first: of the patches that are averaged.

    Without `fc_norm` the feature is token 0, the top-left patch. EasyCV averages from patch 1 on.
    """
    _, x = conv_stages(tape, images, [], [], False)
    return classify(tape, tape.vit_blocks("blocks3", x, heads, eps), first, eps)
