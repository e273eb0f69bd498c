"""Networks recognised before, in the user's cache: telling one takes models to compare with, and Paddle to build them.

An entry holds for exactly these names and shapes and this very code; any change of either is another entry. A cache
that cannot be read or written is done without.
"""
import ast
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path

from convert.families import FAMILIES, NAMINGS
from convert.formats import Refused, atomic_write
from convert.recognise import Network
from convert.sizes import Shapes
from ppssl.cache import cache_folder

LARGEST = 10_000_000                                      # bytes of an entry


def remembered(recognise: Callable[..., Network], shapes: Shapes, *options) -> Network:
    """recognise(shapes, *options), looked up where it has succeeded before. Raises what it raises."""
    with contextlib.suppress(OSError, LookupError, TypeError, ValueError, SyntaxError, MemoryError, RuntimeError):
        place = entry_of(shapes, options)
        if place.stat().st_size <= LARGEST:
            return from_text(place.read_text())
    network = recognise(shapes, *options)
    with contextlib.suppress(OSError, Refused, RuntimeError):
        place = entry_of(shapes, options)
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place, overwrite=True) as file:
            file.write(to_text(network).encode())
    return network


def entry_of(shapes: Shapes, options: tuple) -> Path:
    return cache_folder() / "networks" / hashlib.sha256(repr((code(), list(shapes.items()), options)).encode()).hexdigest()


@cache
def code() -> str:
    """A digest of all that decides what is recognised: the model files and the converter."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *(here.parent / "ppssl").glob("**/*.py")])
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def to_text(network: Network) -> str:
    """The network as a Python literal; its family and naming by their place in the tables."""
    values = {f.name: getattr(network, f.name) for f in fields(network)}
    return repr(values | {"family": FAMILIES.index(network.family), "naming": NAMINGS.index(network.naming),
                          "linear": sorted(network.linear)})


def from_text(text: str) -> Network:
    """The inverse of `to_text`. Raises ValueError, TypeError, LookupError or SyntaxError for anything else."""
    values = ast.literal_eval(text)
    return Network(**values | {"family": FAMILIES[values["family"]], "naming": NAMINGS[values["naming"]],
                               "linear": frozenset(values["linear"])})
