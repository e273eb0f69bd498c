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
from convert.recognise import Network, by_order, families_of, recognise
from convert.remembered import remembered

RECIPE = "recipe"                                         # in the metadata of safetensors and own files
RECIPE_TENSOR = "ppssl@@recipe"                           # in a .pdparams, which has no metadata: its bytes as a tensor
RUN_SECTIONS = {"model_ema": "ema", "teacher": "teacher"}  # the section of a run that an official entry becomes
OTHERS = (*RUN_SECTIONS.values(), "optimizer", "other")   # of what is stored beside the weights
LEGACY_BACKBONES = ("online_backbone", "target_backbone")  # of BYOL's legacy file


@dataclass(frozen=True)
class Section:
    """One state dict of a file. path: where it stands. network: None where it is no known one; `reason` says why."""
    path: tuple
    state: Mapping[str, np.ndarray]
    network: Network | None
    reason: str = ""


@dataclass(frozen=True)
class Contents:
    """An opened file. tree: as its writer nested it; by section where names are flat. recipe: of a converted file.

    model: the registered name that the main network has to have.
    """
    path: Path
    loaded: Loaded
    tree: Any
    recipe: str | None
    model: str | None = None

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Its state dicts, recognised when they are first asked for: that takes Paddle, and seconds to import it."""
        found = state_dicts(self.tree)
        hint = None if self.model else hinted(self.tree, self.loaded)
        wanted = [self.model] + [None] * len(found)
        return tuple(examine(where, state, self.loaded, name, hint) for (where, state), name in zip(found, wanted))

    @cached_property
    def main(self) -> Section:
        """The weights that are wanted when one asks for the weights. Raises Refused where they are no known network."""
        if not self.sections:
            raise Refused(f"{self.path}: holds no weights: expected tensors by name, or under one of "
                          f"{', '.join(SECTIONS)}; check the path")
        if self.sections[0].network is None:
            raise Refused(f"{self.path}: {self.sections[0].reason}")
        return self.sections[0]

    @property
    def args(self) -> dict[str, Any]:
        """The options that the run was started with, where the file tells them."""
        args = self.tree.get("args") if isinstance(self.tree, Mapping) else None
        return dict(vars(args)) if isinstance(args, Namespace) else dict(args) if isinstance(args, Mapping) else {}


def read(path: str | Path, model: str | None = None) -> Contents:
    """Open a file and recognise its networks. model: the registered name that the main one has to have.

    Raises Refused for an unknown name, and as `convert.formats.load`.
    """
    families_of(model)                                    # an unknown name is wrong whatever the file holds
    return contents(load(path), Path(path), model)


def contents(loaded: Loaded, path: Path, model: str | None = None) -> Contents:
    """As `read`, for a file that is open already."""
    tree, recipe = nested(loaded)
    return Contents(path, loaded, tree, recipe, model)


def nested(loaded: Loaded) -> tuple[Any, str | None]:
    """(the tree of a file, that of own and converted files by section; its recipe, if it is a converted file)."""
    tree, recipe = loaded.tree, loaded.metadata.get(RECIPE)
    if isinstance(tree, Mapping) and RECIPE_TENSOR in tree:
        recipe = bytes(tree[RECIPE_TENSOR]).decode(errors="replace")
    if loaded.format == "ppssl" or recipe is not None:
        tree = by_section(tree, always=loaded.format == "ppssl")
    return tree, recipe


def by_section(flat: Mapping[str, np.ndarray], always: bool) -> dict[str, dict[str, np.ndarray]]:
    """Names 'section.key' nested by section. Unless `always`, names without one of the OTHERS are the model's."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, value in flat.items():
        first, _, rest = name.partition(".")
        section, key = (first, rest) if always or first in OTHERS else ("model", name)
        if name != RECIPE_TENSOR:
            tree.setdefault(section, {})[key] = value
    return tree


def state_dicts(tree: Any) -> list[tuple[tuple, Mapping[str, np.ndarray]]]:
    """(path, state dict) of a file's entries in the order of SECTIONS, then of the file; or of the file itself."""
    if not isinstance(tree, Mapping):
        return []
    found = [key for key, value in tree.items() if key not in ("optimizer", "other") and is_state_dict(value)]
    flat = {key: value for key, value in tree.items() if isinstance(key, str) and isinstance(value, np.ndarray)}
    if flat and not set(SECTIONS) & set(found):
        return [((), flat)]
    order = [*(key for key in SECTIONS if key in found), *(key for key in found if key not in SECTIONS)]
    return [((key,), tree[key]) for key in order]


def is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(
        isinstance(key, str) and isinstance(item, np.ndarray) for key, item in value.items())


def is_training(tree: Any) -> bool:
    """Whether a file holds the state of an official run's optimizer."""
    optimizer = tree.get("optimizer") if isinstance(tree, Mapping) else None
    return isinstance(optimizer, Mapping) and "param_groups" in optimizer and "epoch" in tree


def hinted(tree: Any, loaded: Loaded) -> str | None:
    """The model's name that the run's own options tell."""
    try:
        name = json.loads(loaded.metadata["config"])["model"]
    except (LookupError, TypeError, ValueError, RecursionError):
        name = getattr(tree.get("args") if isinstance(tree, Mapping) else None, "model", None)
    return name if isinstance(name, str) else None


def examine(path: tuple, state: Mapping[str, np.ndarray], loaded: Loaded, model: str | None, hint: str | None
            ) -> Section:
    shapes = {key: value.shape for key, value in state.items()}
    try:
        return Section(path, state, remembered(recognise, shapes, loaded.format in ("paddle", "ppssl"), model, hint))
    except Refused as refusal:
        network = by_order(shapes) if path and path[-1] in LEGACY_BACKBONES else None
        return Section(path, state, network, "" if network else str(refusal))
