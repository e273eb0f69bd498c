"""Reading a network's sizes off the shapes of its weights: small measures that the families' tables are made of.

A measure is called with {official key: shape} and returns a constructor argument, or None where the weights do not
tell. It only looks at what is the same in both frameworks; a KeyError means that the network is another one.
"""
import math
from collections.abc import Callable, Mapping

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Measure = Callable[[Shapes], object]


def axis(key: str, index: int) -> Measure:
    """The length of one axis."""
    return lambda shapes: shapes[key][index]


def kernel(key: str) -> Measure:
    """(height, width) of a convolution."""
    return lambda shapes: shapes[key][2:]


def count(name: str) -> Measure:
    """The number of members of a list such as `blocks`."""
    def measure(shapes: Shapes) -> int:
        indices = {key[len(name) + 1:].split(".")[0] for key in shapes if key.startswith(f"{name}.")}
        if not indices:
            raise KeyError(name)
        return len(indices)
    return measure


def ratio(hidden: str, width: Measure) -> Measure:
    """Hidden width over width of an MLP, from its first layer's bias: a factor that gives it back, rounded down."""
    def measure(shapes: Shapes) -> float:
        dim, wanted = width(shapes), shapes[hidden][0]
        factor = wanted / dim
        return factor if int(dim * factor) == wanted else math.nextafter(factor, math.inf)
    return measure


def fan_in(weight: str, bias: str) -> Measure:
    """The input width of a Linear, whichever way its weight lies."""
    return lambda shapes: math.prod(shapes[weight]) // shapes[bias][0]


def has(key: str) -> Measure:
    return lambda shapes: key in shapes


def optional(measure: Measure) -> Measure:
    """None where what is measured is not in the file."""
    def measured(shapes: Shapes) -> object:
        try:
            return measure(shapes)
        except KeyError:
            return None
    return measured


def among(*keys: str) -> Measure:
    """The length of the first of these vectors that is there, else None."""
    return lambda shapes: next((shapes[key][0] for key in keys if key in shapes), None)


def each(*measures: Measure) -> Measure:
    """Several measures as a list."""
    return lambda shapes: [measure(shapes) for measure in measures]


def image(table: str, *kernels: str, extra: int = 0) -> Measure:
    """Image (height, width): the grid of a position table [1, extra + N, D] times the patch convolutions' strides.

    A grid that is not square cannot be told from its table: it is taken as N x 1, which has the same tensors.
    """
    def measure(shapes: Shapes) -> Shape:
        patches = shapes[table][1] - extra
        side = math.isqrt(patches)
        grid = (side, side) if side * side == patches else (patches, 1)
        return tuple(g * math.prod(shapes[k][2 + i] for k in kernels) for i, g in enumerate(grid))
    return measure


def heads(width: Measure, *pairs: tuple[Measure, str]) -> Measure:
    """A number of heads that the weights allow: files do not hold it. 64 channels a head where that fits, as is usual.

    pairs: (width, vector of the length heads * floor(width / heads)), where attention is narrower than its input.
    """
    def measure(shapes: Shapes) -> int | None:
        dim = width(shapes)
        if dim is None:
            return None
        inner = [(outer(shapes), shapes[key][0]) for outer, key in pairs if key in shapes] or [(dim, dim)]
        candidates = (dim // 64, *range(2, dim + 1), 1)
        return next(h for h in candidates if h and all(h * (w // h) == a for w, a in inner))
    return measure
