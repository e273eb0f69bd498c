"""`--sharding`: the optimizer's state divided over the ranks (ZeRO stage 1, Rajbhandari et al., arXiv 1910.02054).

Paddle's own `group_sharded_parallel` takes no CPU and no optimizer that is not its own; this one takes both.
"""
from dataclasses import dataclass

import paddle

from ppssl import dist
from ppssl.errors import BadRequest
from ppssl.threads import shares


@dataclass(frozen=True)
class Gathered:
    """What a checkpoint takes of an optimizer, from all ranks, in host memory."""
    tensors: dict[str, paddle.Tensor]
    steps: int

    def state(self) -> dict[str, paddle.Tensor]:
        return self.tensors


class Sharded:
    """An optimizer each rank of which keeps the state of its own parameters, moves these and hands them out.

    Every rank has to call `step` and `gather`. Raises BadRequest where there are fewer tensors than ranks.
    """

    def __init__(self, optimizer):
        self.groups = optimizer.groups
        sizes = {name: p.size for g in self.groups for name, p in g.params}
        if len(sizes) < dist.world():
            raise BadRequest(f"--sharding divides {len(sizes)} trained tensors over {dist.world()} ranks: leave it out")
        self._owners = shares(sizes, dist.world())
        self._own = optimizer.only(lambda name: self._owners[name] == dist.rank())

    @property
    def steps(self) -> int:
        return self._own.steps

    @paddle.no_grad()
    def step(self, lr: float, weight_decay: float | None = None) -> None:
        self._own.step(lr, weight_decay)
        dist.hand_out([(p, self._owners[name]) for g in self.groups for name, p in g.params])

    def clear_grad(self) -> None:
        for group in self.groups:
            for p in group.tensors:
                p.clear_gradient(set_to_zero=False)

    def gather(self) -> Gathered:
        """The state of all ranks, a tensor at a time."""
        own = self._own.state()
        tensors = {}
        for owner, keys in enumerate(dist.gather_objects({key: (t.shape, str(t.dtype).rsplit(".", 1)[-1]) for key, t in own.items()})):
            for key, (shape, dtype) in keys.items():
                tensor = own[key] if owner == dist.rank() else paddle.empty(shape, dtype)
                dist.hand_out([(tensor, owner)])
                tensors[key] = tensor.cpu()
        return Gathered(tensors, self.steps)

    def load(self, state: dict, steps: int) -> None:
        """Continue from the state of all ranks. Raises ValueError where it is not that of these parameters."""
        unknown = {key for key in state if key.split(".", 1)[1] not in self._owners}
        if unknown:
            raise ValueError(f"the optimizer state does not fit the model: {sorted(unknown)[0]} has no partner")
        self._own.load({key: v for key, v in state.items() if self._owners[key.split(".", 1)[1]] == dist.rank()}, steps)


def gathered(optimizer):
    """What a checkpoint takes of any optimizer; every rank has to call it."""
    return optimizer.gather() if isinstance(optimizer, Sharded) else optimizer
