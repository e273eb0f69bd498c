"""LARS (You et al., arXiv 1708.03888): SGD whose step on a tensor is scaled by the ratio of its norm to the gradient's.

The two official versions differ: MAE's multiplies the momentum buffer by the learning rate, BYOL's keeps the rate
inside the buffer, so that a change of it does not rescale past steps.
"""
from collections.abc import Iterable

import paddle
from paddle import _C_ops

from ppssl.optim.groups import Group
from ppssl.optim.sgd import SGD, Row, scaled

EXCLUDED = ("bn", "downsample.1", "bias")


def norms(tensors: list):
    """2-norms of T tensors, [T]: a small kernel each, and nothing is read from the device."""
    return paddle.sqrt(paddle.concat([_C_ops.squared_l2_norm(t) for t in tensors]))


class LARS(SGD):
    """MAE's: matrices step by trust * |p| / |g + decay * p| (1 where a norm is 0), vectors plainly and without decay.

    Source: facebookresearch/mae `util/lars.py`.
    """

    rate_in_buffer = False

    def __init__(self, groups: list[Group], momentum: float = 0.9, trust: float = 0.001, **kwargs):
        super().__init__(groups, momentum, **kwargs)
        self.trust = trust

    def _adapts(self, row: Row) -> bool:
        return row.tensor.ndim > 1

    def _ratios(self, rows: list[Row], directions: list, decay: float):
        """Factors [T] of the directions g + decay * p."""
        p, d = norms([r.tensor for r in rows]), norms(directions)
        return paddle.where((p > 0) & (d > 0), self.trust * p / d, paddle.ones_like(p))

    def _update(self, rows: list[Row], rate: float, decay: float, share: float) -> None:
        inside, outside = (rate, 1.0) if self.rate_in_buffer else (1.0, rate)
        plain, adapted = ([r for r in rows if self._adapts(r) is kind] for kind in (False, True))
        self._move(plain, scaled([r.tensor.grad for r in plain], share * inside), outside)
        if adapted:
            directions = [(decay * r.tensor).add_(r.tensor.grad) for r in adapted]
            factors = (share * inside * self._ratios(adapted, directions, decay)).unbind()
            self._move(adapted, [d.multiply_(f) for d, f in zip(directions, factors)], outside)


class LarsSGD(LARS):
    """BYOL's: eta * |p| / (|g| + decay * |p|) for all tensors but the `excluded`, which step plainly, without decay.

    A tensor that is zero, or has neither gradient nor decay, does not move. Source: blankWorld/BYOL-PyTorch
    `optimizer/LARSSGD.py`.
    """

    rate_in_buffer = True

    def __init__(self, groups: list[Group], momentum: float = 0.9, eta: float = 0.001,
                 excluded: frozenset[str] = frozenset(), **kwargs):
        super().__init__(groups, momentum, eta, **kwargs)
        self.excluded = excluded

    def _adapts(self, row: Row) -> bool:
        return row.name not in self.excluded

    def _ratios(self, rows: list[Row], directions: list, decay: float):
        p, g = norms([r.tensor for r in rows]), norms([r.tensor.grad for r in rows])
        below = g + decay * p
        return paddle.where(below > 0, self.trust * p / below, paddle.zeros_like(p))


def byol_groups(params: Iterable, weight_decay: float, exclude: bool) -> tuple[list[Group], frozenset[str]]:
    """A group for every (name, parameter), in order as the official optimizer has them; and the names left out of LARS.

    exclude: biases and batch norms take no decay and no adaptation, told by their names. The stem's norm is called
    `encoder.1.weight`, which no part matches, so it does take both.
    Source: blankWorld/BYOL-PyTorch `utils/params_util.py`.
    """
    params = list(params)
    excluded = frozenset(name for name, _ in params if exclude and any(part in name for part in EXCLUDED))
    return [Group(((name, p),), weight_decay=0.0 if name in excluded else weight_decay) for name, p in params], excluded
