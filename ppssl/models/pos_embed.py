"""Position tables: fixed two-dimensional sine-cosine tables, and resizing of any table to another grid."""
import numpy as np


def _sincos_1d(positions: np.ndarray, dim: int) -> np.ndarray:
    """positions [N] -> [N, dim]: sines in the first half of the channels, cosines in the second (float64)."""
    omega = 10000.0 ** (-np.arange(dim // 2) / (dim / 2.0))
    angles = positions[:, None] * omega[None, :]                    # [N, dim/2]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_table(dim: int, grid: tuple[int, int], extra_tokens: int = 0, columns_first: bool = True) -> np.ndarray:
    """Fixed sine-cosine position table, float32 [1, extra_tokens + H*W, dim], rows of patches in row-major order.

    `columns_first` puts the column (width) coordinate into the first half of the channels, as MAE does; BootMAE puts
    the row coordinate there. The rows of the extra tokens (cls) are zero. Computed in float64.
    Raises ValueError unless dim is a multiple of 4. Source: facebookresearch/mae `util/pos_embed.py`.
    """
    if dim % 4:
        raise ValueError(f"a two-dimensional sine-cosine table needs a width divisible by 4, not {dim}")
    rows, columns = np.meshgrid(np.arange(grid[0], dtype=np.float64), np.arange(grid[1], dtype=np.float64), indexing="ij")
    halves = (columns, rows) if columns_first else (rows, columns)
    table = np.concatenate([_sincos_1d(h.reshape(-1), dim // 2) for h in halves], axis=1)      # [H*W, dim]
    table = np.concatenate([np.zeros((extra_tokens, dim)), table], axis=0)
    return table[None].astype(np.float32)


def resize_table(table: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
    """Resize a position table [1, extra + h*w, D] to [1, extra + H*W, D], extra (leading) rows copied.

    Bicubic, half-pixel centres, coefficient -0.75, no antialias: PyTorch's interpolate(mode='bicubic',
    align_corners=False), which Paddle's equals. Source: facebookresearch/mae `util/pos_embed.py:interpolate_pos_embed`.
    """
    if old_grid == new_grid:
        return table
    import paddle.nn.functional as F
    from paddle import to_tensor

    extra = table.shape[1] - old_grid[0] * old_grid[1]
    image = table[:, extra:].reshape(1, *old_grid, -1).transpose(0, 3, 1, 2)                   # [1, D, h, w]
    image = F.interpolate(to_tensor(np.ascontiguousarray(image)), size=list(new_grid), mode="bicubic").numpy()
    patches = image.transpose(0, 2, 3, 1).reshape(1, new_grid[0] * new_grid[1], -1)
    return np.concatenate([table[:, :extra], patches], axis=1)
