"""Block-wise masks of patches (BEiT, arXiv 2106.08254, algorithm 1) as BootMAE draws them: their count is exact."""
import math
import random
from dataclasses import dataclass

import numpy as np

MAX_TRIES = 100_000                                       # blocks drawn in vain before the request counts as impossible
ASPECT = 0.3                                              # of a block, at least; 1 / ASPECT at most


@dataclass(frozen=True)
class BlockMask:
    """Masks of `count` patches of a grid (rows, columns), as a union of rectangles.

    A rectangle's area is drawn between `smallest` and what is still to be masked, at most `largest` (default: count).
    It is narrower and lower than the grid. Calling it raises ValueError where no such rectangle can be found. The
    order of draws is the official one. Source: LightDXY/BootMAE `masking_generator.py`.
    """
    grid: tuple[int, int]
    count: int
    smallest: int = 4
    largest: int | None = None

    def __post_init__(self):
        if not 0 < self.count <= self.grid[0] * self.grid[1]:
            raise ValueError(f"{self.count} patches cannot be masked in a grid of {self.grid[0]}x{self.grid[1]}")

    def __call__(self, draws: random.Random) -> np.ndarray:
        """A mask [rows, columns] uint8, 1 masked."""
        mask, left = np.zeros(self.grid, np.uint8), self.count
        while left:
            left -= self._add_block(mask, min(left, self.largest or self.count), draws)
        return mask

    def _add_block(self, mask: np.ndarray, most: int, draws: random.Random) -> int:
        """Mask one more rectangle, of at most `most` patches that were not; returns how many."""
        (rows, columns), log_aspect = self.grid, math.log(ASPECT)
        for _ in range(MAX_TRIES):
            area = draws.uniform(self.smallest, most)
            aspect = math.exp(draws.uniform(log_aspect, -log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height < rows and width < columns:
                top, left = draws.randint(0, rows - height), draws.randint(0, columns - width)
                block = mask[top:top + height, left:left + width]
                new = height * width - np.count_nonzero(block)
                if 0 < new <= most:
                    block[:] = 1
                    return new
        raise ValueError(f"no block of {self.smallest} to {most} patches fits into a grid of {rows}x{columns}")
