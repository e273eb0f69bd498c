"""Feature maps kept token by token.

Where every down-sampling joins square groups of positions, each position of an earlier, finer stage belongs to one
token of the last stage. A map is therefore stored as rows [B, K * P, C]: the P positions of a token together, in nested
order (which group of the next stage, then which position inside it). Tokens can then be left out, a down-sampling is a
reshape, and everything but the convolution over neighbours is a matrix product over the rows.
"""
from functools import cached_property
from math import prod

import numpy as np
import paddle

KERNEL = 5                                                # side of the convolution over neighbours
REACH = KERNEL // 2


def square(rows, columns) -> np.ndarray:
    """All (row, column) pairs, row by row: [len(rows) * len(columns), 2]."""
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


def nested(pairs: np.ndarray, side: int) -> np.ndarray:
    """Each (row, column) replaced by the side x side positions of its group: [n, 2] -> [n * side ** 2, 2]."""
    return (pairs[:, None] * side + square(np.arange(side), np.arange(side))).reshape(-1, 2)


class TokenMap:
    """The map of one stage: `grid` tokens down and across, each of nested groups of `sides`, the outermost first.

    For (2, 2) a token holds 2 x 2 groups of 2 x 2 positions, P = 16.
    """

    def __init__(self, grid: tuple[int, int], sides: tuple[int, ...]):
        self.grid, self.sides = grid, sides
        self.side, self.group = prod(sides), sides[-1]    # positions along a token; along an innermost group
        self.groups = self.side // self.group             # groups along a token
        self.positions = self.side ** 2                   # P
        self.size = (grid[0] * self.side, grid[1] * self.side)

    def _offsets(self) -> np.ndarray:
        """(row, column) of a token's positions, [P, 2]."""
        pairs = np.zeros((1, 2), np.int64)
        for side in self.sides:
            pairs = nested(pairs, side)
        return pairs

    def _window(self) -> np.ndarray:
        """(row, column) of the groups in and around a token that a convolution at its positions sees, [G, 2]."""
        rings = -(-REACH // self.group)
        reach = np.arange(-rings, self.groups + rings)
        return square(reach, reach)

    @cached_property
    def order(self):
        """[N, P] int64: where position p of token n stands in the map, row by row."""
        corners = square(*(np.arange(n) * self.side for n in self.grid))
        places = corners[:, None] + self._offsets()
        return paddle.to_tensor(places @ np.array([self.size[1], 1]))

    @cached_property
    def owners(self):
        """The token of each place of the map and which of its positions it is, each [H * W] int64."""
        token, position = np.divmod(np.argsort(self.order.numpy(), axis=None), self.positions)
        return paddle.to_tensor(token), paddle.to_tensor(position)

    @cached_property
    def neighbours(self):
        """For `_window`'s groups: the token each belongs to [N, G] (N: none) and which of its groups it is [G]."""
        token, inside = np.divmod(self._window(), self.groups)
        places = square(*(np.arange(n) for n in self.grid))[:, None] + token                   # [N, G, 2]
        there = ((places >= 0) & (places < self.grid)).all(-1)
        index = np.where(there, places @ np.array([self.grid[1], 1]), prod(self.grid))
        return paddle.to_tensor(index), paddle.to_tensor(inside @ np.array([self.groups, 1]))

    @cached_property
    def taps(self):
        """[25, W * P] float32, 0 or 1: which kernel weight joins each of W window positions to each of the token's."""
        step = nested(self._window(), self.group)[:, None] - self._offsets() + REACH           # [W, P, 2]
        inside = ((step >= 0) & (step < KERNEL)).all(-1)
        tap = np.where(inside, step @ np.array([KERNEL, 1]), -1).reshape(-1)
        return paddle.to_tensor((tap == np.arange(KERNEL ** 2)[:, None]).astype(np.float32))


class Rows:
    """Where the rows of the visible tokens lie in a map.

    ids_keep [B, K] int64: the visible tokens in the order of their rows; ids_restore [B, N] int64: the rank of every
    token in that order, K and above for the hidden ones.
    """

    def __init__(self, token_map: TokenMap, ids_keep, ids_restore):
        self.map, self.ids_keep, self.ids_restore = token_map, ids_keep, ids_restore
        self.batch, self.kept = ids_keep.shape

    @cached_property
    def _slots(self):
        """[B, N + 1]: the number of each token among the batch's visible ones, B * K for hidden tokens and for none."""
        none = self.batch * self.kept
        ranks, first = self.ids_restore, paddle.arange(self.batch).unsqueeze(1) * self.kept
        slots = paddle.where(ranks < self.kept, ranks + first, paddle.full_like(ranks, none))
        return paddle.concat([slots, paddle.full([self.batch, 1], none, "int64")], axis=1)

    def places(self, maps: int):
        """[B * K * P]: where each row stands in `maps` maps laid row by row; sample b belongs to map b % maps."""
        first = paddle.arange(self.batch) % maps * prod(self.map.size)
        order = paddle.gather(self.map.order, self.ids_keep.flatten())                         # [B * K, P]
        return (order.reshape([self.batch, -1]) + first.unsqueeze(1)).flatten()

    @cached_property
    def windows(self):
        """[B * K * G]: the groups in and around each visible token, numbered through; hidden ones after the last."""
        near, inside = self.map.neighbours
        tokens = paddle.gather(near, self.ids_keep.flatten()).reshape([self.batch, -1])        # [B, K * G]
        slots = paddle.take_along_axis(self._slots, tokens, axis=1)
        return (slots.reshape([self.batch * self.kept, -1]) * self.map.groups ** 2 + inside).flatten()

    @cached_property
    def dense(self):
        """[B * H * W]: the row of every place of the maps; hidden ones after the last."""
        token, position = self.map.owners
        return (paddle.index_select(self._slots, token, axis=1) * self.map.positions + position).flatten()
