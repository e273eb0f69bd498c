"""What is inside a file of any format: its state dicts, the networks they are, and everything beside them."""
import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convert.families import SECTIONS
from convert.formats import Loaded, Refused, load
from convert.recognise import Network, recognise

RECIPE = "recipe"                                         # in the metadata of safetensors and own files
RECIPE_TENSOR = "ppssl@@recipe"                           # in a .pdparams, which has no metadata: its bytes as a tensor
FORMATS = {"torch-zip": "PyTorch file", "torch-legacy": "PyTorch file (before 1.6)", "safetensors": "safetensors file",
           "paddle": "Paddle file", "ppssl": "ppssl checkpoint"}
OTHERS = ("ema", "teacher", "optimizer", "other")         # first parts of the names of what is stored beside the weights


@dataclass(frozen=True)
class Section:
    """One state dict of a file. path: where it stands. network: None where it is no known one, `reason` says why."""
    path: tuple
    state: Mapping[str, np.ndarray]
    network: Network | None
    reason: str = ""


@dataclass(frozen=True)
class Contents:
    """An opened file. tree: nested as its writer had it; for files with flat names, by section. recipe: of a converted file."""
    path: Path
    loaded: Loaded
    tree: Any
    recipe: str | None
    sections: tuple[Section, ...]

    @cached_property
    def main(self) -> Section:
        """The weights that are wanted when one asks for the weights. Raises Refused where they are no known network."""
        if not self.sections:
            raise Refused(f"{self.path}: holds no weights: expected tensors by name, or under one of {', '.join(SECTIONS)}; "
                          "check the path")
        if self.sections[0].network is None:
            raise Refused(f"{self.path}: {self.sections[0].reason}")
        return self.sections[0]

    @property
    def args(self) -> dict[str, Any]:
        """The options that the run was started with, where the file tells them."""
        args = self.tree.get("args") if isinstance(self.tree, Mapping) else None
        return dict(vars(args)) if isinstance(args, Namespace) else dict(args) if isinstance(args, Mapping) else {}


def read(path: str | Path, model: str | None = None) -> Contents:
    """Open a file and recognise its networks. model: the registered name that the main one has to have. Raises Refused."""
    return contents(load(path), Path(path), model)


def contents(loaded: Loaded, path: Path, model: str | None = None) -> Contents:
    """As `read`, for a file that is open already."""
    tree, recipe = loaded.tree, loaded.metadata.get(RECIPE)
    if isinstance(tree, Mapping) and RECIPE_TENSOR in tree:
        recipe = bytes(tree[RECIPE_TENSOR]).decode(errors="replace")
    if loaded.format == "ppssl" or recipe is not None:
        tree = by_section(tree, always=loaded.format == "ppssl")
    found = state_dicts(tree)
    hint = None if model else hinted(tree, loaded)
    sections = [examine(where, state, loaded, model if i == 0 else None, hint) for i, (where, state) in enumerate(found)]
    return Contents(path, loaded, tree, recipe, tuple(sections))


def by_section(flat: Mapping[str, np.ndarray], always: bool) -> dict[str, dict[str, np.ndarray]]:
    """Names 'section.key' nested by section. Unless `always`, the weights stand there without a section, among the OTHERS."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, value in flat.items():
        first, _, rest = name.partition(".")
        section, key = (first, rest) if always or first in OTHERS else ("model", name)
        if name != RECIPE_TENSOR:
            tree.setdefault(section, {})[key] = value
    return tree


def state_dicts(tree: Any) -> list[tuple[tuple, Mapping[str, np.ndarray]]]:
    """(path, state dict) of the file itself or of its entries, in the order of SECTIONS, then of the file."""
    if not isinstance(tree, Mapping):
        return []
    if any(isinstance(value, np.ndarray) for value in tree.values()):
        return [((), {key: value for key, value in tree.items() if isinstance(value, np.ndarray)})]
    found = [key for key, value in tree.items() if key not in ("optimizer", "other") and is_state_dict(value)]
    order = [*(key for key in SECTIONS if key in found), *(key for key in found if key not in SECTIONS)]
    return [((key,), tree[key]) for key in order]


def is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(
        isinstance(key, str) and isinstance(item, np.ndarray) for key, item in value.items())


def hinted(tree: Any, loaded: Loaded) -> str | None:
    """The model's name that the run's own options tell."""
    if "config" in loaded.metadata:
        return json.loads(loaded.metadata["config"]).get("model")
    args = tree.get("args") if isinstance(tree, Mapping) else None
    return getattr(args, "model", None)


def examine(path: tuple, state: Mapping[str, np.ndarray], loaded: Loaded, model: str | None, hint: str | None) -> Section:
    shapes = {key: value.shape for key, value in state.items()}
    try:
        return Section(path, state, recognise(shapes, loaded.format in ("paddle", "ppssl"), model, hint))
    except Refused as refusal:
        return Section(path, state, None, str(refusal))
