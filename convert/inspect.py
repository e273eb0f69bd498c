"""What a file holds, and what to do with it next."""
import json
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.contents import Contents, is_training
from convert.families import classifier_family
from convert.formats import Refused, sha256_of
from convert.recognise import Network, has_any, registered_sizes

FORMATS = {"torch-zip": "PyTorch file", "torch-legacy": "PyTorch file (before 1.6)", "safetensors": "safetensors file",
           "paddle": "Paddle file", "ppssl": "ppssl checkpoint"}
ENCODER_SIZES = ("embed_dim", "depth", "patch_size", "mlp_ratio", "resnet")


@dataclass(frozen=True)
class Inspection:
    """The findings.

    like: methods whose keys are the same; inside, absent: parts that the file has and lacks; beside: {other entries:
    what they are}; dtypes: {name: tensors}; nonfinite: {path: NaN and infinite numbers}; problem: why it is not recognised.
    """
    path: str
    container: str
    bytes: int
    sha256: str
    network: str | None
    like: str
    layout: str | None
    naming: str | None
    inside: tuple[str, ...]
    absent: tuple[str, ...]
    beside: dict[str, str]
    tensors: int
    numbers: int
    dtypes: dict[str, int]
    nonfinite: dict[str, int]
    problem: str
    next: tuple[str, ...]


def inspect(found: Contents) -> Inspection:
    """Look at everything in a file; a network that is not recognised is a finding, not an error."""
    network, problem = None, ""
    try:
        network = found.main.network
    except Refused as refusal:
        problem = str(refusal)
    arrays, has = dict(tensors_in(found.tree)), parts(found, network)
    origin = ", converted from PyTorch" if found.recipe else ""
    return Inspection(
        path=str(found.path), container=FORMATS[found.loaded.format] + origin, bytes=found.path.stat().st_size,
        sha256=sha256_of(found.path), network=network and network.title, like=network.family.like if network else "",
        layout=network and ("Paddle" if network.paddle else "PyTorch"), naming=network and network.naming.title,
        inside=tuple(name for name, there in has.items() if there),
        absent=tuple(name for name, there in has.items() if not there), beside=beside(found), tensors=len(arrays),
        numbers=sum(value.size for value in arrays.values()),
        dtypes=dict(Counter(str(value.dtype) for value in arrays.values())), nonfinite=nonfinite(arrays, found),
        problem=problem, next=tuple(next_commands(found, network)) if network else ())


def tensors_in(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """(dotted path, tensor) of everything in a tree."""
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif isinstance(tree, Namespace | Mapping):
        for key, value in (vars(tree) if isinstance(tree, Namespace) else tree).items():
            yield from tensors_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from tensors_in(value, f"{path}[{i}]")


def nonfinite(arrays: Mapping[str, np.ndarray], found: Contents) -> dict[str, int]:
    """{path: how many numbers are NaN or infinite} of the tensors that have any."""
    counts = {}
    for path, value in arrays.items():
        if value.dtype.kind in "fVc" and not has_finite_sum(value):
            counts[path] = int(value.size - np.isfinite(value).sum())
        found.loaded.forget()
    return {path: count for path, count in counts.items() if count}


def has_finite_sum(value: np.ndarray) -> bool:
    """A NaN or an infinity makes the sum one, and the sum is five times faster than looking at each number."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(value.sum()))


def parts(found: Contents, network: Network | None) -> dict[str, bool]:
    """{part of the network, or what a training run adds: whether it is there}."""
    tree = found.tree if isinstance(found.tree, Mapping) else {}
    has = {}
    if network:
        own = [name for name, prefixes in network.family.parts.items() if has_any(network.shapes, prefixes)]
        has = {"encoder" if own else "whole network": True} | {name: name not in network.absent for name in own}
    return has | {"EMA": bool({"model_ema", "ema"} & set(tree)), "optimizer": bool(tree.get("optimizer")),
                  "args": bool(found.args) or "config" in tree or "config" in found.loaded.metadata}


def beside(found: Contents) -> dict[str, str]:
    """What stands beside the main network: other state dicts, tensors of no network, how far the run was."""
    others = {".".join(map(str, s.path)): s.network.title if s.network else f"{len(s.state)} tensors"
              for s in found.sections[1:]}
    carried = [key for s in found.sections[:1] if s.network for key, ours in s.network.keys.items() if ours is None]
    if carried:
        others["no network's"] = f"{len(carried)} tensors (first {carried[0]})"
    tree = found.tree if isinstance(found.tree, Mapping) else {}
    return others | ({"epoch": str(tree["epoch"])} if isinstance(tree.get("epoch"), int) else {}) | progress(found)


def progress(found: Contents) -> dict[str, str]:
    """How far a run of this project was, of any other file nothing."""
    try:
        done = json.loads(found.loaded.metadata["state"])["progress"]
        return {"done": f"{done['epoch']} epochs and {done.get('batch', 0)} batches, step {done['step']}"}
    except (LookupError, TypeError, ValueError, RecursionError):
        return {}


def next_commands(found: Contents, network: Network) -> Iterator[str]:
    """What one does with such a file."""
    path, task = found.path, "linprobe" if network.probe or not is_finetuned(network) else "finetune"
    if network.paddle:
        yield f"python -m convert to-torch {path} -o {path.with_suffix('.pth').name}"
    resumable = is_training(found.tree) or "state" in found.loaded.metadata
    if network.family.task == "pretrain" and network.entry and resumable:
        yield f"python main_pretrain.py --model {network.entry} --resume {path}"
    if network.family.task == "classifier" and network.entry and "head" not in network.absent:
        yield f"python main_{task}.py --model {network.entry} --eval --resume {path}"
    elif companion := classifier_of(network):
        yield f"python main_{task}.py --model {companion} --finetune {path}"
    if not network.paddle:
        yield f"python -m convert to-paddle {path} -o {path.with_suffix('.pdparams').name}"


def is_finetuned(network: Network) -> bool:
    """Whether a method finetunes such networks; BYOL's are only probed."""
    from ppssl import methods

    return any(network.family.name in method.families for method in methods.of_task("finetune"))


def classifier_of(network: Network) -> str | None:
    """The registered classifier with this network's encoder."""
    if network.family.task == "classifier":
        return network.entry
    sizes = {key: value for key, value in network.sizes.items() if key in ENCODER_SIZES}
    for entry in classifier_family(network.family).entries() if sizes else ():
        if sizes.items() <= registered_sizes("classifier", entry.name).items():
            return entry.name
    return None
