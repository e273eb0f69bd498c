"""State dicts of registered models without their memory, and files in memory, for the tests of the converter."""
from pathlib import Path

import numpy as np
from paddle import LazyGuard

from convert.contents import Contents, contents
from convert.conversion import Converted, to_paddle
from convert.formats import Loaded, load
from convert.layout import official_shapes
from ppssl.models import registry

ENTRIES = [e for e in registry.entries() if e.name == e.build.__name__]
GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.rglob("*.pth"))


def name_of(path: Path) -> str:
    return str(path.relative_to(GOLDEN))


def shapes_of(entry: registry.Entry, **kwargs) -> dict:
    """{official key: shape} of a registered model."""
    with LazyGuard():
        return official_shapes(entry.build(**kwargs))


def weightless(shapes: dict) -> dict[str, np.ndarray]:
    """Tensors of these shapes that take no memory: each shows one number everywhere."""
    return {key: np.broadcast_to(np.array(i, np.int64 if key.endswith("num_batches_tracked") else np.float32), tuple(shape))
            for i, (key, shape) in enumerate(shapes.items())}


def random_weights(shapes: dict, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: np.asarray(rng.standard_normal(shape), np.float32) for key, shape in shapes.items()}


def opened(tree, format: str = "torch-zip", metadata: dict | None = None) -> Contents:
    """A file that is open without having been written."""
    return contents(Loaded(format, tree, metadata or {}), Path("memory"))


def as_opened(converted: Converted) -> Contents:
    """A converted file, opened."""
    return opened(dict(converted.tensors), "ppssl", dict(converted.metadata))


def there_and_back(tree):
    """The tree that comes back from a conversion to Paddle and to PyTorch again."""
    from convert.conversion import to_torch

    return to_torch(as_opened(to_paddle(opened(tree))))[0]


def same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    """The very same numbers at the very same place."""
    return (a.ctypes.data, a.shape, a.strides, a.dtype) == (b.ctypes.data, b.shape, b.strides, b.dtype)


def golden(name: str):
    return load(GOLDEN / name).tree
