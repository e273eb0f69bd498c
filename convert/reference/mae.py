"""MAE pretraining (facebookresearch/mae, `models_mae.py`)."""
import torch
from torch import Tensor

from convert.reference.tape import Tape, gather


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """noise [B, N] -> ids_keep [B, K], mask [B, N] (1 removed), ids_restore [B, N]."""
    keep = int(noise.shape[1] * (1 - mask_ratio))
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    return shuffle[:, :keep], (restore >= keep).to(noise.dtype), restore


def patchify(images: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] -> [B, h*w, height*width*C], the channel fastest."""
    b, c = images.shape[:2]
    rows, columns = images.shape[2] // height, images.shape[3] // width
    x = images.reshape(b, c, rows, height, columns, width).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, rows * columns, -1)


def pixel_loss(target: Tensor, pred: Tensor, mask: Tensor, norm_pix: bool) -> Tensor:
    """Mean over the removed patches of the squared error; target, pred [B, N, P]."""
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()


def unshuffle(tokens: Tensor, mask_token: Tensor, ids_restore: Tensor) -> Tensor:
    """Visible tokens [B, K, D] and mask tokens in image order, [B, N, D]."""
    b, k, _ = tokens.shape
    masks = mask_token.expand(b, ids_restore.shape[1] - k, -1)
    return gather(torch.cat([tokens, masks], dim=1), ids_restore)


def forward(tape: Tape, images: Tensor, noise: Tensor, *, heads: int, decoder_heads: int, mask_ratio: float = 0.75,
            norm_pix_loss: bool = False, eps: float = 1e-6) -> dict[str, Tensor]:
    """images [B, C, H, W], noise [B, N] -> loss [], pred [B, N, P], latent [B, 1 + K, D], mask [B, N], ids_restore."""
    ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
    position = tape.weight("pos_embed")
    x = gather(tape.patches("patch_embed", images) + position[:, 1:], ids_keep)
    cls = (tape.weight("cls_token") + position[:, :1]).expand(len(x), -1, -1)
    x = tape.vit_blocks("blocks", torch.cat([cls, x], dim=1), heads, eps)
    latent = tape.norm("norm", x, eps)
    x = tape.linear("decoder_embed", latent)
    x = torch.cat([x[:, :1], unshuffle(x[:, 1:], tape.weight("mask_token"), ids_restore)], dim=1)
    x = tape.vit_blocks("decoder_blocks", x + tape.weight("decoder_pos_embed"), decoder_heads, eps)
    pred = tape.linear("decoder_pred", tape.norm("decoder_norm", x, eps))[:, 1:]
    target = patchify(images, *tape.weight("patch_embed.proj.weight").shape[2:])
    loss = pixel_loss(target, pred, mask, norm_pix_loss)
    return {"loss": loss, "pred": pred, "latent": latent, "mask": mask, "ids_restore": ids_restore}
