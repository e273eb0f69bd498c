"""LARS (You et al., arXiv 1708.03888) as MAE's linear probe uses it."""
from collections.abc import Mapping

import numpy as np
import paddle

from ppssl.optim.groups import Group


class LARS:
    """SGD with momentum whose step on a matrix is scaled by trust * |p| / |g + decay * p|.

    1-D parameters take the plain step without decay. The learning rate multiplies the momentum buffer at the end.
    Source: facebookresearch/mae `util/lars.py`.
    """

    def __init__(self, groups: list[Group], momentum: float = 0.9, trust: float = 0.001):
        self.groups, self.momentum, self.trust, self.steps = groups, momentum, trust, 0
        self._velocity: dict[str, paddle.Tensor] = {}

    @paddle.no_grad()
    def step(self, lr: float, weight_decay: float | None = None) -> None:
        """One update at rate lr * group scale; `weight_decay` replaces the groups' own where given."""
        for group in self.groups:
            decay = group.weight_decay if weight_decay is None else weight_decay
            for name, p in group.params:
                if p.grad is not None:
                    p.subtract_(self._direction(name, p, decay) * (lr * group.lr_scale))
        self.steps += 1

    def _direction(self, name: str, p, decay: float):
        update = p.grad
        if p.ndim > 1:
            update = update + decay * p
            p_norm, u_norm = p.norm(), update.norm()
            ratio = self.trust * p_norm / u_norm
            update = update * paddle.where((p_norm > 0) & (u_norm > 0), ratio, paddle.ones_like(ratio))
        velocity = self._velocity.get(name)
        self._velocity[name] = update.clone() if velocity is None else self.momentum * velocity + update
        return self._velocity[name]

    def clear_grad(self) -> None:
        for group in self.groups:
            for p in group.tensors:
                p.clear_gradient(set_to_zero=False)

    def state(self) -> dict[str, paddle.Tensor]:
        """{momentum.parameter name: buffer}."""
        return {f"momentum.{name}": v for name, v in self._velocity.items()}

    def load(self, state: Mapping[str, np.ndarray], steps: int) -> None:
        """Continue from `state` after `steps` updates. Raises ValueError where it names a parameter this optimizer does not train."""
        names = {name for g in self.groups for name, _ in g.params}
        found = {key.split(".", 1)[1]: value for key, value in state.items()}
        if set(found) - names:
            raise ValueError(f"the optimizer state does not fit the model: {sorted(set(found) - names)[0]} has no partner")
        self._velocity = {name: paddle.to_tensor(np.array(value)) for name, value in found.items()}
        self.steps = steps
