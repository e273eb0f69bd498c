"""BYOL's released legacy file: the modules saved one by one, under tensor names that only resemble torchvision's.

Its names are documented nowhere, its order is: the i-th tensor of a module is the i-th of ours. Shapes are checked.
Source: blankWorld/BYOL-PyTorch `readme.md`, `utils/load_and_convert.py`.
"""
from collections.abc import Mapping, Sequence

import numpy as np

from convert.formats import Refused

SECTIONS = {"online_backbone": "online_network.encoder.", "online_projection": "online_network.projetion.",
            "predictor": "predictor.predictor.", "target_backbone": "target_network.encoder.",
            "target_projection": "target_network.projetion."}


def match_by_order(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Tensors (PyTorch layout) under the names of `shapes`, by position; those that follow (a head) are left out.

    Raises Refused where there are too few or a shape differs.
    """
    if len(tensors) < len(shapes):
        raise Refused(f"{len(tensors)} tensors where the model has {len(shapes)}: the file is of a smaller network")
    for (theirs, value), (ours, shape) in zip(tensors.items(), shapes.items()):
        if list(value.shape) != list(shape):
            raise Refused(f"matched by order, {theirs} {list(value.shape)} would be {ours} {list(shape)}: "
                          "the file is of another network")
    return dict(zip(shapes, tensors.values()))


def from_legacy(tree: Mapping, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The tensors of a legacy file under the official names; shapes: those of the whole model, in official order.

    Modules that the file does not have are left out. Raises Refused without an online backbone, and as `match_by_order`.
    """
    if "online_backbone" not in tree:
        raise Refused("no BYOL legacy file: it has no 'online_backbone'; see python -m convert inspect")
    out = {}
    for section, prefix in SECTIONS.items():
        if isinstance(tree.get(section), Mapping):
            out |= match_by_order(tree[section], {k: s for k, s in shapes.items() if k.startswith(prefix)})
    return out
