"""Reading a golden case folder: settings, stored arrays, generated inputs, synthetic weights."""
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Case:
    """A case folder. `spec` is its case.json, `arrays` all stored arrays by full name ('out/loss')."""
    dir: Path

    @cached_property
    def spec(self) -> dict:
        return json.loads((self.dir / "case.json").read_text())

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        path = self.dir / "arrays.npz"
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """Inputs by name without 'in/': generated ones (edited), then stored ones, which have their edits already."""
        inputs = generate(self.spec.get("generated", []))
        for edit in self.spec.get("edits", []):
            apply_edit(inputs, edit)
        stored = {name[3:]: a for name, a in self.arrays.items() if name.startswith("in/")}
        return inputs | stored

    @property
    def name(self) -> str:
        return f"{self.dir.parent.name}/{self.dir.name}"

    def file(self, name: str) -> Path:
        return self.dir / name

    def manifest(self) -> dict[str, list]:
        """Official key -> [shape, dtype], in official order (full-size cases)."""
        return json.loads((self.dir / "manifest.json").read_text())

    def synthetic_weights(self, seed_field: str = "weights_seed", manifest: str = "manifest.json") -> dict[str, np.ndarray]:
        """The checkpoint of a full-size case, in official key order."""
        keys = json.loads((self.dir / manifest).read_text())
        return {key: synthetic_tensor(key, shape, dtype, self.spec[seed_field]) for key, (shape, dtype) in keys.items()}


def generate(recipes: list[dict]) -> dict[str, np.ndarray]:
    """Inputs that a case gives as a formula: one generator per recipe, its draws in order; floats become float32."""
    out = {}
    for recipe in recipes:
        rng = np.random.default_rng(recipe["seed"])
        for name, method, shape, *options in recipe["draws"]:
            kwargs = dict(options[0]) if options else {}
            value = np.asarray(rng.permutation(*shape) if method == "permutation" else getattr(rng, method)(size=shape, **kwargs))
            out[name] = value.astype(np.float32) if value.dtype.kind == "f" else value
    return out


def apply_edit(inputs: dict[str, np.ndarray], edit: dict) -> None:
    """Overwrite or scale a region of a generated input: index is [first, end) per axis. Another recipe is an error."""
    unknown = set(edit) - {"input", "index", "set", "multiply"}
    if unknown or ("set" in edit) == ("multiply" in edit):
        raise ValueError(f"an edit this runner does not understand: {edit}")
    if edit["input"] not in inputs:
        return                                            # a stored copy has its edits already
    region = tuple(slice(first, end) for first, end in edit["index"])
    target = inputs[edit["input"]]
    if "set" in edit:
        target[region] = np.float32(edit["set"])
    else:
        target[region] *= np.float32(edit["multiply"])


def synthetic_tensor(key: str, shape, dtype: str, seed: int) -> np.ndarray:
    """A tensor drawn from a generator seeded by the case's seed and the CRC-32 of its official key.

    Norm scales (1-D weights) lie around 1, running variances above 1, counters are 0, biases and running means have
    standard deviation 0.1, all else 1/sqrt(fan_in) with fan_in the product of the trailing dimensions.
    """
    shape = tuple(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    values = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape)
    if key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif len(shape) > 1:
        values = values / np.sqrt(max(1, int(np.prod(shape[1:]))))
    else:
        values = 0.1 * values + (1.0 if len(shape) == 1 and key.endswith("weight") else 0.0)
    return values.astype(dtype)


def find_cases(folders: list[Path]) -> list[Case]:
    """Case folders among and below the given ones, sorted. Raises ValueError where a folder holds none."""
    found = []
    for folder in folders:
        cases = sorted(p.parent for p in Path(folder).rglob("case.json"))
        if not cases:
            raise ValueError(f"no case.json in or below {folder}")
        found.extend(Case(c.resolve()) for c in cases)
    return found
