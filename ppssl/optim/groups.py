"""Which parameters train how: weight decay and learning-rate scale, as groups."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ppssl.threads import in_parts


@dataclass(frozen=True)
class Group:
    """Parameters (name, tensor) that share a learning-rate scale and a weight decay."""
    params: tuple
    lr_scale: float = 1.0
    weight_decay: float = 0.0

    @property
    def tensors(self) -> list:
        return [p for _, p in self.params]


def narrowed(groups: Iterable[Group], keep: Callable[[str], bool]) -> list[Group]:
    """The groups with the parameters that `keep` takes by name, without those that are empty then."""
    kept = [replace(g, params=tuple((name, p) for name, p in g.params if keep(name))) for g in groups]
    return [g for g in kept if g.params]


def divided(groups: Iterable[Group]) -> list[list[Group]]:
    """The groups, cut into about equal parts for the threads that a step on CPU may use; on GPU one part."""
    groups = list(groups)
    parts = in_parts([item for g in groups for item in g.params], lambda item: item[1])
    return [narrowed(groups, {name for name, _ in part}.__contains__) for part in parts]


def trainable(model) -> list[tuple[str, object]]:
    """(name, parameter) of what the optimizer may change, in the model's order."""
    return [(name, p) for name, p in model.named_parameters() if p.trainable]


def is_vector_or_bias(name: str, parameter) -> bool:
    """The usual exemption from weight decay: 1-D tensors (biases, norm scales) and names ending in '.bias'."""
    return parameter.ndim == 1 or name.endswith(".bias")


def decay_groups(params: Iterable, weight_decay: float, exempt: Callable = is_vector_or_bias) -> list[Group]:
    """Two groups, the one without decay first. Source: timm 0.3.2 `optim_factory.py:add_weight_decay`."""
    params = list(params)
    free = tuple((n, p) for n, p in params if exempt(n, p))
    decayed = tuple((n, p) for n, p in params if not exempt(n, p))
    return [Group(free, weight_decay=0.0), Group(decayed, weight_decay=weight_decay)]


def layer_decay_groups(params: Iterable, weight_decay: float, layer_of: Callable[[str], int], scale_of: Callable[[int], float],
                       exempt: Callable) -> list[Group]:
    """Groups by (layer, decay or not), in order of first appearance; a layer's learning-rate scale is scale_of(layer).

    Source: facebookresearch/mae `util/lr_decay.py:param_groups_lrd` (after BEiT, arXiv 2106.08254).
    """
    found: dict[tuple[int, float], list] = {}
    for name, p in params:
        found.setdefault((layer_of(name), 0.0 if exempt(name, p) else weight_decay), []).append((name, p))
    return [Group(tuple(members), scale_of(layer), decay) for (layer, decay), members in found.items()]
