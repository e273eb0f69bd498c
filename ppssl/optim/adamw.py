"""AdamW (Loshchilov & Hutter, arXiv 1711.05101): Paddle's own, with state by structured parameter name."""
from collections.abc import Callable, Mapping

import numpy as np
import paddle

from ppssl.optim.groups import Group, divided, narrowed
from ppssl.threads import together

SLOTS = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")


class AdamW:
    """paddle.optimizer.AdamW over groups. Its arithmetic equals PyTorch's to float32 rounding.

    On CPU the parameters are divided over this rank's threads, since Paddle's kernel uses one.
    """

    def __init__(self, groups: list[Group], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.groups, self.betas, self.eps, self.steps = groups, betas, eps, 0
        self._names = {p.name: name for g in groups for name, p in g.params}
        self._parts = [(part, self._over(part)) for part in divided(groups)]

    def _over(self, groups: list[Group]) -> paddle.optimizer.AdamW:
        return paddle.optimizer.AdamW(
            learning_rate=0.0, beta1=self.betas[0], beta2=self.betas[1], epsilon=self.eps, weight_decay=0.0,
            parameters=[{"params": g.tensors, "learning_rate": g.lr_scale, "weight_decay": g.weight_decay} for g in groups])

    def only(self, keep: Callable[[str], bool]) -> "AdamW":
        """A new optimizer like this one, over the parameters that `keep` takes by name."""
        return AdamW(narrowed(self.groups, keep), self.betas, self.eps)

    def step(self, lr: float, weight_decay: float | None = None) -> None:
        """One update at rate lr * group scale. `weight_decay`, where given, replaces that of every decayed group."""
        for groups, inner in self._parts:
            inner.set_lr(lr)
            if weight_decay is not None:
                for own, group in zip(inner._param_groups, groups):
                    own["weight_decay"] = weight_decay if group.weight_decay > 0 else 0.0
        together([inner.step for _, inner in self._parts])
        self.steps += 1

    def clear_grad(self) -> None:
        for _, inner in self._parts:
            inner.clear_grad(set_to_zero=False)

    def state(self) -> dict[str, paddle.Tensor]:
        """{slot.parameter name: tensor}; the beta powers [1] hold beta ** (steps + 1). Empty before the first step."""
        found = {}
        for key, value in ((key, value) for _, inner in self._parts for key, value in inner.state_dict().items()):
            slot = next((s for s in SLOTS if key.endswith(f"_{s}_0")), None)
            if slot:
                found[f"{slot}.{self._names[key.removesuffix(f'_{slot}_0')]}"] = value
        return found

    def load(self, state: Mapping[str, np.ndarray], steps: int) -> None:
        """Continue from `state` after `steps` updates. Raises ValueError where it is not that of this optimizer's parameters."""
        tensor_names = {name: tensor for tensor, name in self._names.items()}
        unknown = {key for key in state if key.split(".", 1)[1] not in tensor_names}
        missing = {name for name in tensor_names if state and f"moment1.{name}" not in state}
        if unknown or missing:
            raise ValueError(f"the optimizer state does not fit the model: {sorted(unknown | missing)[0]} has no partner")
        for groups, inner in self._parts:
            own = {name for group in groups for name, _ in group.params}
            inner.set_state_dict({f"{tensor_names[name]}_{slot}_0": paddle.to_tensor(np.array(value))
                                  for (slot, name), value in ((key.split(".", 1), value) for key, value in state.items()) if name in own})
        self.steps = steps
