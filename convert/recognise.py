"""Which network a file's tensors are, told from their names and shapes against models built without memory."""
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from convert.families import FAMILIES, NAMINGS, OFFICIAL, Family, Naming
from convert.formats import Refused
from convert.layout import official_buffer, official_shapes, transposed_keys
from convert.sizes import Shapes
from ppssl.errors import BadRequest
from ppssl.models import registry

BY_ORDER = Naming("unknown names, matched by order", {})
COUNTER = "num_batches_tracked"                           # Paddle's own batch norm has none


@dataclass(frozen=True)
class Network:
    """A network found in a file.

    entry: the registered model of these sizes, None where there is none. probe: whether its head is a linear probe's, a
    batch norm and a linear layer. keys: {key in the file: official key, or None for a carried tensor}, in file order.
    shapes: {official key: shape in PyTorch's layout} of the whole network, in official order. linear: its keys that
    PyTorch stores transposed. absent: the parts that the file lacks. paddle: whether the file has Paddle's layout.
    missing, unexpected, mismatched: official keys that speak against it.
    """
    family: Family
    entry: str | None
    sizes: Mapping
    naming: Naming
    probe: bool
    keys: Mapping[str, str | None]
    shapes: Shapes
    linear: frozenset[str]
    absent: tuple[str, ...]
    paddle: bool
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    @property
    def distance(self) -> int:
        """Number of tensors that are missing, unexpected or of another shape."""
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    @property
    def title(self) -> str:
        told = ", ".join(f"{name} {self.sizes[name]}" for name in ("embed_dim", "depth") if name in self.sizes)
        size = f"of no registered size{f' ({told})' if told else ''}"
        return f"{self.family.title} {self.entry or size}"

    def build(self):
        """A model of these sizes, initialised; call it under paddle.LazyGuard for one without memory."""
        return build(self.family, self.entry, self.sizes, self.probe)

    @cached_property
    def official(self) -> dict[str, str]:
        """{official key: key in the file}, in official order, of what the file holds."""
        theirs = {ours: key for key, ours in self.keys.items() if ours is not None}
        return {key: theirs[key] for key in self.shapes if key in theirs}


def build(family: Family, entry: str | None, sizes: Mapping, probe: bool):
    model = family.create(entry, sizes)
    if probe:
        from ppssl.methods.linprobe import attach_probe_head

        attach_probe_head(model)
    return model


def recognise(shapes: Shapes, paddle_format: bool = False, model: str | None = None, hint: str | None = None
              ) -> Network:
    """The network whose tensors have these names and shapes.

    paddle_format: whose layout to assume where all matrices are square. model: the registered name it has to be. hint:
    a registered name that decides between families with the same tensors. Raises Refused: keys of no known family
    (naming the closest and what it lacks), a partial match, shapes of another size than `model`.
    """
    best = closest(families_of(model), without_wrapper(shapes), shapes, paddle_format, model, hint)
    if best is None or best.distance:
        raise Refused(complaint(best, shapes, model))
    return best


def families_of(model: str | None) -> list[Family]:
    """The families that have a registered model of that name; all without one. Raises Refused naming the nearest."""
    families = [f for f in FAMILIES if model is None or named(f, model)]
    if not families:
        known = sorted({e.name for f in FAMILIES for e in f.entries()})
        near = difflib.get_close_matches(model, known, n=1, cutoff=0.3) or known
        raise Refused(f"unknown model {model}; did you mean {near[0]}?")
    return families


def closest(families: list[Family], stripped: Mapping[str, str], shapes: Shapes, paddle_format: bool, model: str | None,
            hint: str | None) -> Network | None:
    """The network with the fewest differences; of equal ones the hint's, then what lacks least, then the first."""
    best, best_rank = None, None
    for naming in namings(stripped.values()):
        for family in families:
            network = fit(family, naming, stripped, shapes, paddle_format, model)
            if network is None:
                continue
            rank = (network.distance, bool(hint) and not named(family, hint), len(network.absent))
            if best is None or rank < best_rank:
                best, best_rank = network, rank
            if rank == (0, False, 0):
                return with_name(best)
    return best and with_name(best)


def by_order(shapes: Shapes) -> Network | None:
    """The ResNet whose tensors these are one by one, under names of nobody's; what follows them is carried along.

    For BYOL's legacy file, whose names are documented nowhere. None where the shapes are of no registered ResNet.
    """
    family = next(f for f in FAMILIES if (f.name, f.task) == ("byol", "classifier"))
    for entry in family.entries():
        own, linear = built(family, entry.name, {}, False)
        encoder = {key: shape for key, shape in own.items() if not key.startswith(family.parts["head"])}
        if list(encoder.values()) == [tuple(shape) for shape in shapes.values()][:len(encoder)]:
            keys = dict(zip(shapes, [*encoder, *[None] * (len(shapes) - len(encoder))]))
            return Network(family, entry.name, {}, BY_ORDER, False, keys, own, linear, ("head",), False)
    return None


def with_name(network: Network) -> Network:
    """The network with its registered name, if there is a registered model of its sizes."""
    return network if network.entry else replace(network, entry=registered(network.family, network.sizes))


def named(family: Family, model: str) -> str | None:
    """The canonical name of a registered model of this family, aliases followed."""
    try:
        entry = registry.find(family.task, model)
    except BadRequest:
        return None
    return entry.build.__name__ if entry.family == family.name else None


def without_wrapper(shapes: Shapes) -> dict[str, str]:
    """{key in the file: key without a 'module.' that all of them have, batch norm buffers under PyTorch's names}."""
    wrapped = all(key.startswith("module.") for key in shapes)
    return {key: official_buffer(key.removeprefix("module.") if wrapped else key) for key in shapes}


def namings(keys) -> list[Naming]:
    """The namings that change something of these keys, and the official one."""
    return [n for n in NAMINGS if n is OFFICIAL or any(n.official(key) != key for key in keys)]


def fit(family: Family, naming: Naming, stripped: Mapping[str, str], shapes: Shapes, paddle_format: bool,
        model: str | None) -> Network | None:
    """How well a family explains the tensors; None where not even its sizes can be read off them."""
    keys = {key: naming.official(plain) for key, plain in stripped.items()}
    present = {ours: tuple(shapes[key]) for key, ours in keys.items() if ours is not None}
    probe = family.task == "classifier" and "head.1.bias" in present
    try:
        sizes = measured(family, present)
        entry = named(family, model) if model else None
        own, linear = built(family, entry, sizes, probe)
    except (LookupError, ZeroDivisionError, ValueError):
        return None
    return compare(Network(family, entry, sizes, naming, probe, keys, own, linear, (), paddle_format), present)


def measured(family: Family, shapes: Shapes) -> dict:
    """The sizes that can be read off the tensors. Raises LookupError where it is another family."""
    values = {name: measure(shapes) for name, measure in family.sizes.items()}
    return {name: value for name, value in values.items() if value is not None}


def built(family: Family, entry: str | None, sizes: Mapping, probe: bool) -> tuple[dict, frozenset[str]]:
    """(official shapes, Linear weights) of a model that takes no memory."""
    from paddle import LazyGuard

    with LazyGuard():
        model = build(family, entry, sizes, probe)
    return official_shapes(model), transposed_keys(model)


@cache
def registered_sizes(task: str, name: str) -> dict:
    """The sizes of a registered model, measured on its own tensors."""
    family = next(f for f in FAMILIES if f.task == task and named(f, name))
    return measured(family, built(family, name, {}, False)[0])


def registered(family: Family, sizes: Mapping) -> str | None:
    """The name of the registered model of these sizes, apart from the free ones."""
    fixed = {name: size for name, size in sizes.items() if name not in family.free}
    return next((entry.name for entry in family.entries()
                 if fixed.items() <= registered_sizes(family.task, entry.name).items()), None)


def compare(network: Network, present: Shapes) -> Network:
    """The network with its layout decided and its differences listed."""
    own, linear = network.shapes, network.linear
    paddle = is_paddle(own, linear, present, network.paddle)
    wanted = {key: shape[::-1] if paddle and key in linear else shape for key, shape in own.items()}
    parts = {name: prefixes for name, prefixes in network.family.parts.items() if has_any(own, prefixes)}
    absent = {name: prefixes for name, prefixes in parts.items() if not has_any(present, prefixes)}
    left_out = tuple(prefix for prefixes in absent.values() for prefix in prefixes)
    return replace(
        network, paddle=paddle, absent=tuple(absent),
        missing=tuple(key for key in own if key not in present and not key.startswith(left_out)
                      and not (paddle and key.endswith(COUNTER))),
        unexpected=tuple(key for key in present if key not in own),
        mismatched=tuple(key for key, shape in present.items() if key in own and wanted[key] != shape))


def has_any(keys, prefixes: tuple[str, ...]) -> bool:
    return any(key.startswith(prefixes) for key in keys)


def is_paddle(own: Shapes, linear: frozenset[str], present: Shapes, default: bool) -> bool:
    """Whether most of the Linear weights lie as Paddle's, or `default` where all of them are square."""
    pairs = [(present[key], own[key]) for key in linear & present.keys()]
    votes = [theirs == ours[::-1] for theirs, ours in pairs if ours != ours[::-1] and theirs in (ours, ours[::-1])]
    return sum(votes) * 2 > len(votes) if votes else default


def complaint(best: Network | None, shapes: Shapes, model: str | None) -> str:
    """Why the tensors are refused, and the closest network."""
    if best is None:
        sample, known = ", ".join(list(shapes)[:3]), ", ".join(family.title for family in FAMILIES)
        return f"its {len(shapes)} tensors ({sample}, ...) are of no known family; known: {known}"
    if best.mismatched and (model or not (best.missing or best.unexpected)):
        key = best.mismatched[0]
        return (f"{len(best.mismatched)} tensors have shapes of another size than {best.title}: {key} is "
                f"{list(shapes[best.official[key]])}, expected {list(best.shapes[key])}; choose the --model it was "
                "trained as")
    parts = [f"{len(keys)} {what} (first {keys[0]})" for what, keys in (
        ("missing", best.missing), ("unknown", best.unexpected), ("of another shape", best.mismatched)) if keys]
    return (f"its {len(shapes)} tensors are no whole network; the closest is {best.title} with {', '.join(parts)}; "
            f"get the complete file{' or leave out --model' if model else ''}")
