"""One typed, frozen configuration from defaults, a recipe and flags: `parse` is the only way in.

Every key is flat (the official flag names) on the outside, in flags, YAML recipes and checkpoints; inside, it stands in a
small section that is handed to whoever needs it. An unknown key or a wrong type is a BadRequest naming the nearest key.
"""
import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ppssl import recipe as recipes
from ppssl.errors import BadRequest


class Size(tuple):
    """An image size (height, width), written 224 or 224x160."""

    def __new__(cls, value):
        parts = [value] if isinstance(value, int) else value if isinstance(value, list | tuple) else str(value).lower().split("x")
        height, width = (int(p) for p in (parts * 2 if len(parts) == 1 else parts))
        if min(height, width) < 1:
            raise ValueError(value)
        return super().__new__(cls, (height, width))

    def __str__(self):
        return str(self[0]) if self[0] == self[1] else f"{self[0]}x{self[1]}"


class Pair(tuple):
    """Two numbers, written 0.2,0.8."""

    def __new__(cls, value):
        first, second = (float(v) for v in (value.split(",") if isinstance(value, str) else value))
        return super().__new__(cls, (first, second))


AT_LEAST_0 = ("at least 0", lambda value: value >= 0)
AT_LEAST_1 = ("at least 1", lambda value: value >= 1)


def one_of(*names: str):
    """What a field has to be: one of these."""
    return " or ".join(names), lambda value: value in names


def option(default, help: str, **metadata):
    """A field of a section: its default, the line that --help shows; `alias`: another official name of it; `negative`: an
    official flag that means its opposite; `must`: (what it has to be, in words; the test of a value)."""
    return dataclasses.field(default=default, metadata={"help": help} | metadata)


@dataclass(frozen=True)
class Data:
    """What images are read and how."""
    data_path: str = option("demo", "folder with train/ (and val/) of class folders; 'demo' is the embedded digit set")
    input_size: Size = option(Size(224), "image side in pixels, or height x width as 224x160")
    num_workers: int = option(10, "loader processes of each rank; 0 loads in the training process", must=AT_LEAST_0)
    max_bad_images: float = option(0.001, "share of unreadable images after which a run stops")


@dataclass(frozen=True)
class Train:
    """How long and how fast the weights move."""
    batch_size: int = option(64, "images of one rank and micro-batch; effective batch = batch_size * accum_iter * ranks", must=AT_LEAST_1)
    accum_iter: int = option(1, "micro-batches whose gradients make one optimizer step", alias="update_freq", must=AT_LEAST_1)
    epochs: int = option(400, "passes over the training set", must=AT_LEAST_1)
    lr: float | None = option(None, "absolute peak learning rate; without it, blr * effective batch / 256")
    blr: float = option(1e-3, "base learning rate for 256 images")
    min_lr: float = option(0.0, "where the cosine ends")
    warmup_epochs: float = option(40, "epochs of linear warm-up", must=AT_LEAST_0)
    weight_decay: float = option(0.05, "weight decay")
    clip_grad: float | None = option(None, "largest global gradient norm")
    max_train_step: int | None = option(None, "stop after this many optimizer steps", must=AT_LEAST_1)


@dataclass(frozen=True)
class Run:
    """Where a run lives, and what it writes there."""
    output_dir: str = option("./output_dir", "folder of checkpoints, log.txt and config.yaml; empty: nothing is written")
    log_dir: str | None = option(None, "folder of the VisualDL run (default: output_dir)")
    resume: str = option("", "'auto' (newest checkpoint of output_dir, if any) or a checkpoint file")
    start_epoch: int = option(0, "first epoch of a run that does not resume")
    seed: int = option(0, "seed of initial weights, data order, augmentation and masks")
    device: str | None = option(None, "cpu or gpu (default: gpu where Paddle has one)", must=one_of("cpu", "gpu"))
    amp: str = option("auto", "autocast on GPU: bf16, fp16, none; auto takes bf16 where the GPU has it (no effect on CPU)")
    recompute: bool = option(False, "store less for the backward pass and compute it again there")
    sharding: bool = option(False, "divide the optimizer's state over the ranks")
    resume_reshard: bool = option(False, "resume with another number of ranks or other batches, at the same place of the epoch")
    print_freq: int = option(20, "optimizer steps between log lines", must=AT_LEAST_1)
    save_freq: int = option(20, "every so many epochs a checkpoint is kept for good", alias="save_ckpt_freq", must=AT_LEAST_1)
    keep_last: int = option(2, "number of newest checkpoints kept beside those", must=AT_LEAST_1)
    save_steps: int | None = option(None, "also save every so many optimizer steps", must=AT_LEAST_1)


# Official flags that name something this project does by itself: accepted, with a note. name -> (takes a value, note)
ACCEPTED = {
    "pin_mem": (False, "host memory is pinned by Paddle's loader"),
    "no_pin_mem": (False, "host memory is pinned by Paddle's loader"),
    "world_size": (True, "the launcher sets the number of ranks"),
    "local_rank": (True, "the launcher sets the rank"),
    "dist_on_itp": (False, "the launcher sets up distribution"),
    "dist_url": (True, "the launcher sets up distribution"),
    "multinode": (False, "the launcher sets up distribution"),
    "dist_eval": (False, "evaluation is always spread over the ranks, every image counted once"),
    "enable_deepspeed": (False, "Paddle has its own engine"),
}


@dataclass(frozen=True)
class Config:
    """A resolved request. options: the section of the method's own keys."""
    task: str
    method: str
    model: str
    data: Data
    train: Train
    run: Run
    options: Any
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    def flat(self) -> dict[str, Any]:
        """All keys on one level, of plain YAML types; what a checkpoint and config.yaml hold."""
        keys = {"task": self.task, "method": self.method, "model": self.model}
        for section in (self.data, self.train, self.run, self.options):
            keys |= {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in keys.items()}


def parse(task: str, argv: list[str]) -> Config:
    """Resolve the command line of a task ('pretrain', 'finetune', 'linprobe'). Raises BadRequest; --help exits."""
    from ppssl import methods

    first = _first_look(argv)
    overrides = _overrides(first.override)
    recipe, path, notes = _recipe(task, first, overrides)
    early = recipe | overrides | {k: v for k, v in vars(first).items() if v is not None}
    model = early.get("model") or methods.default_model(task, early.get("data_path", "demo"))
    method = methods.find(task, model, early.get("basemodel"))
    fields = _fields(method)
    _refuse_unknown(argv, fields, task, method)
    flags = vars(_parser(task, method, fields).parse_args(argv))
    notes += [f"--{name} has no effect: {note}" for name, (_, note) in _accepted(method).items() if name in flags]
    flags = {k: v for k, v in flags.items() if k in fields}
    stored = method.defaults | _checked(recipe, fields, str(path), task, method)
    given = _checked(overrides, fields, "-o", task, method) | _checked(flags, fields, "command line", task, method)
    settings = build(task, method, model, stored | given, dry_run=first.dry_run)
    notes += _batch_note(path, build(task, method, model, stored).train, settings.train)
    return dataclasses.replace(settings, notes=tuple(notes))


def build(task: str, method, model: str, values: Mapping[str, Any], dry_run: bool = False) -> Config:
    """A Config from typed flat values; what is not given takes the section's default."""
    def section(kind):
        names = {f.name for f in dataclasses.fields(kind)}
        return kind(**{k: v for k, v in values.items() if k in names})
    return Config(task, method.name, model, section(Data), section(Train), section(Run), section(method.Options), dry_run)


def restore(flat: Mapping[str, Any], **changes) -> Config:
    """The Config that `flat()` was taken from, with changes to its keys; as a dry run, so that no other file is needed."""
    from ppssl import methods

    method = methods.get(flat["task"], flat["method"])
    fields = _fields(method)
    values = {k: coerce(v, fields[k].type, k, "stored config") for k, v in (flat | changes).items() if k in fields}
    return build(flat["task"], method, flat["model"], values, dry_run=True)


def coerce(value, kind, key: str, origin: str):
    """`value` as `kind` (int, float, bool, str, Size, or one of them with None). Raises BadRequest."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    target = next(k for k in kinds if k is not type(None))
    try:
        if target is bool and not isinstance(value, bool) or target is not bool and isinstance(value, bool):
            raise ValueError
        if target is int and (isinstance(value, float) or isinstance(value, str) and not value.lstrip("-").isdigit()):
            raise ValueError
        if target is str and not isinstance(value, str | int | float):
            raise ValueError
        if target is float and not math.isfinite(float(value)):
            raise ValueError
        return target(value)
    except (TypeError, ValueError):
        names = {Size: "a size such as 224 or 224x160", Pair: "two numbers such as 0.2,0.8", bool: "true or false",
                 int: "a whole number", float: "a number", str: "text"}
        raise BadRequest(f"{origin}: {key} must be {names[target]}, not {value!r}") from None


class _Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line, as every other refusal here."""

    def error(self, message: str):
        raise BadRequest(f"command line: {message}")


def _first_look(argv: list[str]) -> argparse.Namespace:
    """What decides which flags exist at all: the recipe, the model, the base model."""
    look = _Parser(add_help=False, allow_abbrev=False)
    for names in (("-c", "--config"), ("--model",), ("--basemodel",), ("--data_path",)):
        look.add_argument(*names)
    look.add_argument("-o", "--override", action="append", default=[])
    look.add_argument("--dry_run", action="store_true")
    return look.parse_known_args(argv)[0]


def _recipe(task: str, first: argparse.Namespace, overrides: dict) -> tuple[dict, Path | None, list[str]]:
    """The recipe's flat keys, its file, and notes. Without any request: the demo recipe of the task."""
    name = first.config
    if name is None:
        if first.model or first.data_path or {"model", "data_path"} & set(overrides):
            return {}, None, []
        name = f"mae/demo_{task}"
    path = recipes.locate(name)
    if not path.exists():
        near = difflib.get_close_matches(name, recipes.names(task), n=1, cutoff=0.6)
        raise BadRequest(f"no recipe {name}: {f'did you mean {near[0]}?' if near else '--list shows all'}")
    if recipes.RECIPES in path.parents and not path.stem.endswith(task):
        raise BadRequest(f"recipe {name} is for main_{path.stem.rsplit('_', 1)[1]}.py, this is main_{task}.py")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} is not a YAML recipe: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadRequest(f"{path} is not a recipe: it must hold one 'key: value' a line")
    if isinstance(content.get("model"), dict):
        from ppssl.byol_recipe import translate

        flat, notes = translate(content)
        return flat, path, notes
    return content, path, []


def _batch_note(path: Path | None, meant: Train, train: Train) -> list[str]:
    """What to say where a request does not make the effective batch that its recipe is for. meant: the recipe's own settings."""
    from ppssl.dist import world

    ranks, micro = path and recipes.ranks(path), train.batch_size * world()
    if not ranks or (batch := meant.batch_size * meant.accum_iter * ranks) == micro * train.accum_iter:
        return []
    fix = f"--accum_iter {batch // micro} would make it" if batch % micro == 0 else "--batch_size and --accum_iter change it"
    return [f"the recipe is for an effective batch of {batch} on {ranks} ranks, this run has {micro * train.accum_iter}: {fix}"]


def _overrides(items: list[str]) -> dict[str, Any]:
    """-o key=value, values read as YAML."""
    for item in items:
        if "=" not in item:
            raise BadRequest(f"-o takes key=value, not {item!r}")
    try:
        return {k: yaml.safe_load(v) for k, v in (item.split("=", 1) for item in items)}
    except yaml.YAMLError as error:
        raise BadRequest(f"-o takes key=value with a value in YAML: {' '.join(str(error).split())}") from None


def _fields(method) -> dict[str, dataclasses.Field]:
    """Every key a method takes, by name."""
    return {f.name: f for kind in (Data, Train, Run, method.Options) for f in dataclasses.fields(kind)}


def _accepted(method) -> dict[str, tuple[bool, str]]:
    """The official flags that are accepted with a note: of all methods and of this one."""
    return ACCEPTED | method.accepted


def _parser(task: str, method, fields: Mapping[str, dataclasses.Field]) -> argparse.ArgumentParser:
    """The command line of one method: every flag, none with a default, so that only what was given is seen."""
    parser = _Parser(prog=f"main_{task}.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
                     description=f"{method.title}. Keys of a recipe and flags have the same names; flags win.")
    parser.add_argument("-c", "--config", help="recipe: a YAML file or a name such as mae/demo_pretrain")
    parser.add_argument("-o", "--override", action="append", metavar="KEY=VALUE", help="set one key, as a recipe would")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, build everything, train nothing")
    parser.add_argument("--list", action="store_true", help="print the recipes and models of this task, and stop")
    parser.add_argument("--model", help="name of a registered model")
    for name, f in fields.items():
        default = method.defaults.get(name, f.default)
        names = [f"--{n}" for n in (name, f.metadata.get("alias")) if n]
        text = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
        if f.type is bool:
            parser.add_argument(*names, dest=name, action="store_true", help=text)
            parser.add_argument(*[f"--{n}" for n in (f"no_{name}", f.metadata.get("negative")) if n], dest=name, action="store_false",
                                help=argparse.SUPPRESS)
        else:
            parser.add_argument(*names, dest=name, metavar=name.upper(), help=text)
    for name, (takes_value, note) in _accepted(method).items():
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **({} if takes_value else {"action": "store_true"}))
    return parser


def _refuse_unknown(argv: list[str], fields, task: str, method) -> None:
    """BadRequest for the first flag that does not exist, naming the nearest."""
    extra = {"config", "override", "dry_run", "list", "model", "help"}
    aliases = {f.metadata[k] for f in fields.values() for k in ("alias", "negative") if k in f.metadata}
    for flag in (a.split("=")[0] for a in argv if a.startswith("--")):
        name = flag[2:]
        positive = name.removeprefix("no_")
        if not {name, positive} & (set(fields) | set(_accepted(method)) | aliases | extra):
            raise BadRequest(f"unknown flag {flag}: {_nearest(name, fields, task, method)}")


def _checked(values: Mapping[str, Any], fields, origin: str, task: str, method) -> dict[str, Any]:
    """Recipe values with their types checked. The keys task, method and model are the recipe's own."""
    aliases = {f.metadata["alias"]: name for name, f in fields.items() if "alias" in f.metadata}
    negatives = {f.metadata["negative"]: name for name, f in fields.items() if "negative" in f.metadata}
    out = {}
    for key, value in values.items():
        if key in ("task", "method", "model"):
            continue
        name = aliases.get(key, key)
        if key in negatives:
            name, value = negatives[key], not coerce(value, bool, key, origin)
        if name not in fields:
            raise BadRequest(f"{origin}: unknown key {key!r}: {_nearest(str(key), fields, task, method)}")
        out[name] = coerce(value, fields[name].type, name, origin)
        wanted, holds = fields[name].metadata.get("must", ("anything", lambda value: True))
        if out[name] is not None and not holds(out[name]):
            raise BadRequest(f"{origin}: {name} must be {wanted}, not {out[name]}")
    return out


def _nearest(name: str, fields, task: str, method) -> str:
    """The hint behind an unknown key: another method's key, else the nearest of this one's."""
    from ppssl import methods

    for other in methods.of_task(task):
        if name in {f.name for f in dataclasses.fields(other.Options)}:
            return f"it belongs to {other.title}, not to {method.title}"
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "--help lists all"
