"""How a file's tree is put together again: its containers, plain values and key order, with tensors as references.

A converted file carries this recipe, so that the way back needs no second map: every tensor says under which name it
was stored and whether it was transposed. It is JSON: containers are lists that begin with their kind, scalars stand for
themselves.
"""
import json
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes  # noqa: F401 - makes numpy know the name bfloat16
import numpy as np

from convert.formats import Refused

VERSION = 1
Place = Callable[[tuple, np.ndarray], tuple[str, bool]]   # path, tensor -> name it is stored under, whether transposed


def encode(tree: Any, place: Place) -> tuple[str, dict[str, np.ndarray]]:
    """(recipe, {name: tensor as it is stored}).

    A tensor that `place` gives no name (a step count) is written into the recipe. A name that comes up twice gets a mark.
    """
    tensors: dict[str, np.ndarray] = {}

    def walk(value: Any, path: tuple) -> Any:
        if isinstance(value, Mapping | Namespace):
            kind, items = ("dict", value) if isinstance(value, Mapping) else ("namespace", vars(value))
            return [kind, *([key, walk(item, (*path, key))] for key, item in items.items())]
        if isinstance(value, list | tuple):
            return [type(value).__name__, *(walk(item, (*path, i)) for i, item in enumerate(value))]
        return tensor(value, path) if isinstance(value, np.ndarray) else value

    def tensor(value: np.ndarray, path: tuple) -> list:
        name, flipped = place(path, value)
        if not name:
            return ["number", value.dtype.name, value.tobytes().hex()]
        while name in tensors:
            name += "+"
        tensors[name] = value.T if flipped else value
        return ["tensor", name, flipped]

    return json.dumps({"version": VERSION, "tree": walk(tree, ())}), tensors


def decode(recipe: str, tensors: Mapping[str, np.ndarray]) -> Any:
    """The tree. Raises Refused where the recipe is damaged or names a tensor that is not there."""
    def walk(node: Any) -> Any:
        return kinds[node[0]](node[1:]) if isinstance(node, list) else node

    kinds = {
        "dict": lambda items: {key: walk(item) for key, item in items},
        "namespace": lambda items: namespace({key: walk(item) for key, item in items}),
        "list": lambda items: [walk(item) for item in items],
        "tuple": lambda items: tuple(walk(item) for item in items),
        "number": lambda items: np.frombuffer(bytes.fromhex(items[1]), items[0]).reshape(()),
        "tensor": lambda items: tensors[items[0]].T if items[1] else tensors[items[0]],
    }
    try:
        content = json.loads(recipe)
        if content["version"] != VERSION:
            raise Refused(f"converted by another version (recipe {content['version']}); use that one")
        return walk(content["tree"])
    except Refused:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(f"its recipe does not fit its tensors ({error}); convert the original file again") from None


def namespace(items: Mapping[str, Any]) -> Namespace:
    """Not by setattr: a stranger's name may be `__class__`."""
    value = Namespace()
    vars(value).update(items)
    return value
