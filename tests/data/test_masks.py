"""Block masks beyond the golden ones: counts, shape, requests that cannot be met."""
import random

import numpy as np
import pytest

from ppssl.data import masks
from ppssl.data.masks import BlockMask


def is_union_of_blocks(mask: np.ndarray, smallest_side: int) -> bool:
    """Every masked patch lies in a fully masked square of that side."""
    windows = np.lib.stride_tricks.sliding_window_view(mask, (smallest_side, smallest_side)).all((2, 3))
    covered = np.zeros_like(mask)
    for i, j in zip(*np.nonzero(windows)):
        covered[i:i + smallest_side, j:j + smallest_side] = 1
    return np.array_equal(covered, mask)


@pytest.mark.parametrize("grid, count, smallest, largest", [
    ((14, 14), 120, 16, 60), ((8, 8), 40, 4, 20), ((6, 10), 60, 1, None), ((2, 2), 4, 1, 1)])
def test_every_mask_has_exactly_the_count(grid, count, smallest, largest):
    found = [BlockMask(grid, count, smallest, largest)(random.Random(seed)) for seed in range(20)]
    assert {m.shape for m in found} == {grid} and {int(m.sum()) for m in found} == {count}
    assert all(m.dtype == np.uint8 and m.max() == 1 for m in found)


def test_masks_are_made_of_blocks_and_not_of_scattered_patches():
    share = [is_union_of_blocks(BlockMask((14, 14), 60, 16, 60)(random.Random(seed)), 2) for seed in range(50)]
    assert np.mean(share) > 0.5                           # the last block may be a thin rest


def test_every_patch_is_masked_about_as_often_as_its_mirror_image():
    often = np.mean([BlockMask((8, 8), 32, 4, 16)(random.Random(seed)) for seed in range(2000)], axis=0)
    assert abs(often.mean() - 0.5) < 1e-9
    assert np.abs(often - often[::-1]).max() < 0.08 and np.abs(often - often[:, ::-1]).max() < 0.08


def test_the_same_seed_gives_the_same_mask_and_another_seed_another():
    draw = BlockMask((14, 14), 120, 16, 60)
    first, again, other = (draw(random.Random(seed)) for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("count", [0, 65])
def test_a_count_beyond_the_grid_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} patches cannot be masked in a grid of 8x8"):
        BlockMask((8, 8), count)


def test_blocks_that_fit_nowhere_end_in_an_error_and_not_in_an_endless_loop(monkeypatch):
    monkeypatch.setattr(masks, "MAX_TRIES", 1000)
    with pytest.raises(ValueError, match="no block of 16 to 16 patches fits into a grid of 4x4"):
        BlockMask((4, 4), 16, smallest=16)(random.Random(0))
