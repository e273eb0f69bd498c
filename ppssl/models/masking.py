"""Random masking of patch tokens and the pixel targets of reconstruction."""
import paddle


def random_masking(noise, mask_ratio: float):
    """Per-sample shuffle from noise [B, N]: which patches are kept.

    Returns ids_keep [B, K] int64 in shuffled order, mask [B, N] float32 (0 kept, 1 removed, image order) and
    ids_restore [B, N] int64 (the inverse shuffle), K = int(N * (1 - mask_ratio)).
    Source: facebookresearch/mae `models_mae.py:random_masking`.
    """
    keep = int(noise.shape[1] * (1 - mask_ratio))
    ids_shuffle = paddle.argsort(noise, axis=1)
    ids_restore = paddle.argsort(ids_shuffle, axis=1)
    return ids_shuffle[:, :keep], (ids_restore >= keep).astype("float32"), ids_restore


def gather_tokens(x, ids):
    """x [B, N, D], ids [B, K] int64 -> [B, K, D]."""
    return paddle.take_along_axis(x, ids.unsqueeze(-1), axis=1)


def restore_tokens(x, mask_token, ids_restore):
    """x [B, 1 + K, D] (cls first, then the kept patches as shuffled) -> [B, 1 + N, D] in image order.

    mask_token [1, 1, D] stands where a patch was removed; ids_restore [B, N] is the inverse shuffle.
    """
    masked = ids_restore.shape[1] + 1 - x.shape[1]
    mask_tokens = mask_token.astype(x.dtype).expand([x.shape[0], masked, -1])
    patches = gather_tokens(paddle.concat([x[:, 1:], mask_tokens], axis=1), ids_restore)
    return paddle.concat([x[:, :1], patches], axis=1)


def patchify(images, patch: tuple[int, int]):
    """[B, C, H, W] -> [B, h*w, ph*pw*C]: row in patch, column in patch, channel (fastest)."""
    b, c, height, width = images.shape
    h, w = height // patch[0], width // patch[1]
    x = images.reshape([b, c, h, patch[0], w, patch[1]]).transpose([0, 2, 4, 3, 5, 1])
    return x.reshape([b, h * w, -1])


def unpatchify(patches, patch: tuple[int, int], grid: tuple[int, int]):
    """[B, h*w, ph*pw*C] -> [B, C, H, W], the inverse of `patchify`."""
    x = patches.reshape([patches.shape[0], *grid, *patch, -1]).transpose([0, 5, 1, 3, 2, 4])
    return x.reshape([x.shape[0], x.shape[1], grid[0] * patch[0], grid[1] * patch[1]])


def normalize_patches(target):
    """Each patch [B, N, P] to zero mean and unit (unbiased) variance; 1e-6 is added to the variance."""
    return (target - target.mean(-1, keepdim=True)) / paddle.sqrt(target.var(-1, keepdim=True) + 1e-6)


def masked_pixel_loss(images, pred, mask, patch: tuple[int, int], normalize: bool):
    """Mean squared error of the removed patches' pixels, in float32.

    images [B, C, H, W], pred [B, N, ph*pw*C], mask [B, N] (1 removed). Source: facebookresearch/mae
    `models_mae.py:forward_loss`; with `normalize` the target is the per-patch normalised pixels (norm_pix_loss).
    """
    target = patchify(images.astype("float32"), patch)
    target = normalize_patches(target) if normalize else target
    error = (pred.astype("float32") - target).square().mean(-1)                                # [B, N]
    return (error * mask).sum() / mask.sum()
