"""Stochastic gradient descent with momentum, all tensors in one fused kernel."""
import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import paddle
from paddle import _C_ops

from ppssl.optim.groups import Group, narrowed
from ppssl.threads import in_parts, together


class Row(NamedTuple):
    """A parameter that has a gradient."""
    name: str
    tensor: paddle.Tensor


def scaled(tensors: list, factor: float) -> list:
    return tensors if factor == 1 else [t * factor for t in tensors]


class SGD:
    """buffer = momentum * buffer + (1 - dampening) * (g + decay * p); p -= lr * buffer, as in torch.optim.SGD.

    A parameter's first gradient is not dampened; parameters without a gradient are left out. With nesterov the step is
    g + decay * p + momentum * buffer. Raises ValueError for nesterov without momentum or with dampening.
    """

    def __init__(self, groups: list[Group], momentum: float = 0.9, dampening: float = 0.0, nesterov: bool = False):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum and no dampening")
        self.groups, self.momentum, self.dampening, self.nesterov = groups, momentum, dampening, nesterov
        self.steps = 0
        self._buffers: dict[str, paddle.Tensor] = {}

    def only(self, keep: Callable[[str], bool]) -> "SGD":
        """A new optimizer like this one, over the parameters that `keep` takes by name."""
        other = copy.copy(self)
        other.groups, other.steps, other._buffers = narrowed(self.groups, keep), 0, {}
        return other

    def step(self, lr: float, weight_decay: float | None = None) -> None:
        """One update at rate lr * group scale; `weight_decay` replaces the groups' own where given."""
        batches: dict[tuple, list[Row]] = {}
        for group in self.groups:
            decay = group.weight_decay if weight_decay is None else weight_decay
            for name, p in group.params:
                if p.grad is not None:
                    key = (lr * group.lr_scale, decay, name in self._buffers)
                    batches.setdefault(key, []).append(Row(name, p))
        for (rate, decay, seen), rows in batches.items():
            share = 1 - self.dampening if seen and self.momentum else 1.0
            together([partial(self._update, part, rate, decay, share) for part in in_parts(rows, lambda row: row.tensor)])
        self.steps += 1

    def _update(self, rows: list[Row], rate: float, decay: float, share: float) -> None:
        """Move parameters of the same rate and decay; `share` of their directions goes into the buffers."""
        self._move(rows, scaled([r.tensor.grad for r in rows], share), rate, share * decay)

    def _move(self, rows: list[Row], directions: list, rate: float, decay: float = 0.0) -> None:
        """buffer = momentum * buffer + direction + decay * p; p -= rate * buffer."""
        if not rows:
            return
        for row in rows:
            if row.name not in self._buffers:
                self._buffers[row.name] = paddle.zeros_like(row.tensor)
        tensors, buffers = [r.tensor for r in rows], [self._buffers[r.name] for r in rows]
        rates, kinds, decays = ([v] * len(rows) for v in (paddle.full([1], rate), "l2_decay", decay))
        # no master weights (None, False), and the gradient scale stays 1: it has no effect on CPU
        _C_ops.merged_momentum_(tensors, directions, buffers, rates, None, self.momentum, self.nesterov, kinds, decays,
                                False, 1.0)

    def clear_grad(self) -> None:
        for group in self.groups:
            for p in group.tensors:
                p.clear_gradient(set_to_zero=False)

    def state(self) -> dict[str, paddle.Tensor]:
        """{momentum.parameter name: buffer}."""
        return {f"momentum.{name}": v for name, v in self._buffers.items()}

    def load(self, state: Mapping[str, np.ndarray], steps: int) -> None:
        """Continue from `state` after `steps` updates. Raises ValueError where it names a parameter that is not trained."""
        names = {name for g in self.groups for name, _ in g.params}
        found = {key.split(".", 1)[1]: value for key, value in state.items()}
        if set(found) - names:
            raise ValueError(f"the optimizer state does not fit the model: {sorted(set(found) - names)[0]} has no partner")
        self._buffers = {name: paddle.to_tensor(np.array(value)) for name, value in found.items()}
        self.steps = steps
