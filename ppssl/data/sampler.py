"""The order of samples: a pure function of (seed, epoch), cut into batches and shared out to the ranks."""
import numpy as np
from paddle.io import BatchSampler


class TrainSampler(BatchSampler):
    """Batches of one rank, each item (epoch, index); whole global batches only, the rest of an epoch is left out.

    Global batch k holds the k-th run of world * batch_size samples of the epoch's order, whatever the number of ranks, so
    that two ranks with half the batch see what one rank with the whole batch sees. Set `epoch` and `first` (batches
    to skip) before iterating.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1, seed: int = 0):
        self.size, self.batch_size, self.rank, self.world, self.seed = size, batch_size, rank, world, seed
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.size // (self.batch_size * self.world)

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        share = order[self.rank::self.world]
        for k in range(self.first, len(self)):
            yield [(self.epoch, int(i)) for i in share[k * self.batch_size:(k + 1) * self.batch_size]]


class EvalSampler(BatchSampler):
    """Every sample exactly once over all ranks, in order; the last batch of a rank may be short."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1):
        self.batch_size = batch_size
        self.indices = range(rank, size, world)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, i) for i in self.indices[start:start + self.batch_size]]
