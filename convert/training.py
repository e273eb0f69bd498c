"""Training states: the authors' checkpoints as runs that `--resume` continues, and runs as the authors' checkpoints.

Parameters of an optimizer are told by position in PyTorch and by name here; the order of the positions is that of the
groups of the method's own optimizer, built around a model without memory.
"""
import contextlib
import dataclasses
import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.contents import Contents
from convert.formats import Refused
from convert.optimizer import extra_tensors, parameter_order, shapes_fit, slots_of, steps_taken, torch_state
from convert.recognise import Network
from ppssl import config as configs
from ppssl import methods
from ppssl.byol_recipe import RENAMED, flatten
from ppssl.config import Config
from ppssl.errors import BadRequest
from ppssl.optim.schedules import scale_lr

MACHINE = {"data_path", "output_dir", "log_dir", "resume", "start_epoch", "num_workers", "device"}
SCALER = {"scale": "scale", "growth_factor": "growth_factor", "backoff_factor": "backoff_factor",
          "growth_interval": "growth_interval", "_growth_tracker": "growth_tracker"}


@dataclass(frozen=True)
class State:
    """A training state to be stored as a run.

    names: {position in the file: parameter}; slots: {theirs: ours}; tensors: what the file does not hold as such;
    metadata: what `ppssl.engine.checkpoint` reads.
    """
    names: Mapping[int, str]
    slots: Mapping[str, str]
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


def from_torch(contents: Contents) -> State:
    """The training state of an authors' checkpoint. Raises Refused where it is not one of this project's methods."""
    network = contents.main.network
    try:
        config = config_of(official_options(contents), network)
        return state_of(contents.tree, network, config, trainee(config, network).build_optimizer())
    except Refused:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Refused(f"its training state is not of the authors' form ({type(error).__name__} {error}); continue with "
                      "the weights alone (--finetune)") from None


def state_of(tree: Mapping, network: Network, config: Config, optimizer) -> State:
    order, state = parameter_order(tree["optimizer"], optimizer), tree["optimizer"]["state"]
    shapes_fit(state, order, network.shapes)
    steps = tree.get("steps", steps_taken(state))
    progress = {"epoch": tree["epoch"] + (not is_byol(network)), "step": steps}
    run = {"progress": progress, "optimizer_steps": steps, "world": None, "scaler": scaler_of(tree.get("scaler"))}
    return State(order, slots_of(state), extra_tensors(state, order, optimizer),
                 {"state": json.dumps(run), "config": json.dumps(config.flat())})


def scaler_of(state: Any) -> dict | None:
    """GradScaler's state by our names; None where it scaled nothing."""
    state = state if isinstance(state, Mapping) else {}
    known = {ours: state[theirs] for theirs, ours in SCALER.items() if theirs in state}
    return known if "scale" in known else None


def is_byol(network: Network) -> bool:
    """Whether a training file is BYOL's: its epochs are counted from 1, and its options stand in a nested `config`."""
    return network.family.name == "byol" and network.family.task == "pretrain"


def official_options(contents: Contents) -> dict[str, Any]:
    """The options that the official run was started with, by their flat names."""
    config = contents.tree.get("config")
    if contents.args or not isinstance(config, Mapping):
        return contents.args
    return {RENAMED[path]: value for path, value in flatten(config).items() if path in RENAMED}


def config_of(args: Mapping[str, Any], network: Network) -> Config:
    """What this project would have been asked for the run: the official options that have the same meaning here.

    Raises Refused where no method trains such a network.
    """
    method = method_of(network)
    values = understood(args, method)
    if "img_size" in network.sizes:
        values["input_size"] = configs.Size(network.sizes["img_size"])
    if method.task != "pretrain" and "num_classes" in network.sizes:
        values["nb_classes"] = network.sizes["num_classes"]
    name = network.entry or args.get("model") or network.family.name
    return configs.build(method.task, method, name, method.defaults | values)


def method_of(network: Network) -> type:
    """What trains such a network here; a ResNet classifier is only ever probed. Raises Refused where nothing does."""
    tasks = ("linprobe",) if network.probe else {"classifier": ("finetune", "linprobe")}.get(network.family.task, ("pretrain",))
    for method in (m for task in tasks for m in methods.of_task(task)):
        if network.family.name in method.families:
            return method
    raise Refused(f"no method here trains a {network.family.title}; continue with the weights alone (--finetune)")


def understood(args: Mapping[str, Any], method) -> dict[str, Any]:
    """The options that the method has as well, of the types it wants; those of the machine are left out."""
    sections = (configs.Data, configs.Train, configs.Run, method.Options)
    values = {}
    for field in (f for section in sections for f in dataclasses.fields(section) if f.name not in MACHINE):
        given = args.get(field.name, args.get(field.metadata.get("alias")))
        if given is not None:
            with contextlib.suppress(BadRequest):         # an option of the same name that means something else there
                values[field.name] = configs.coerce(given, field.type, field.name, "args")
    if "blr" not in args:
        values.pop("lr", None)                            # the file holds it scaled, the flag is not
    return values


def trainee(config: Config, network: Network):
    """A method around a model without memory, for its optimizer's groups; its constructor would want other files."""
    from paddle import LazyGuard

    method = object.__new__(methods.get(config.task, config.method))
    method.config, method.options = config, config.options
    with LazyGuard():
        method.model = network.build()
    return method


def to_torch(contents: Contents, model: dict[str, np.ndarray], ema: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """The checkpoint that the authors' code resumes from, from a run of this project.

    model, ema: official weights, in PyTorch's layout. The entries are model, optimizer, epoch (the last that is
    finished), scaler, args, and model_ema where the run has an average, steps where the optimizer does not count them
    (the authors' code passes over it); BYOL's are its own. Raises Refused where what the run stored is not readable.
    """
    network = contents.main.network
    try:
        state, config = run_state(contents), configs.restore(json.loads(contents.loaded.metadata["config"]))
        moments = moments_of(contents, state, config, network)
        if is_byol(network):
            return byol_file(state, config, model, moments)
        tree = {"model": model, "optimizer": moments, "epoch": epochs_done(state) - 1,
                "scaler": torch_scaler(state["scaler"]), "args": args_of(config)}
        steps = {} if steps_taken(moments["state"]) else {"steps": state["progress"]["step"]}
        return tree | steps | ({"model_ema": ema} if ema else {})
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{contents.path}: what its run stored is not readable ({type(error).__name__} {error}); was it "
                      "written by a newer version?") from None


def moments_of(contents: Contents, state: Mapping, config: Config, network: Network) -> dict[str, Any]:
    """The 'optimizer' entry of the authors' checkpoint."""
    train = config.train
    lr = train.lr or scale_lr(train.blr, train.batch_size, train.accum_iter, state["world"] or 1)
    optimizer = trainee(config, network).build_optimizer()
    return torch_state(contents.tree.get("optimizer", {}), state["optimizer_steps"], optimizer, network.linear, lr)


def run_state(contents: Contents) -> dict[str, Any]:
    return json.loads(contents.loaded.metadata["state"])


def byol_file(state: Mapping, config: Config, model: Mapping[str, np.ndarray], moments: dict) -> dict[str, Any]:
    """The checkpoint of BYOL's code: of several ranks, the names are those of the distributed wrapper that it loads into.

    Source: blankWorld/BYOL-PyTorch `trainer/byol_trainer.py`.
    """
    distributed = (state["world"] or 1) > 1
    prefix = "module." if distributed else ""
    return {"config": byol_options(config) | {"distributed": distributed}, "epoch": epochs_done(state),
            "steps": state["progress"]["step"], "model": {prefix + key: value for key, value in model.items()},
            "optimizer": moments, "amp": {"loss_scaler0": {"loss_scale": 1.0, "unskipped": 0}}}


def byol_options(config: Config) -> dict[str, Any]:
    """The nested options of BYOL's YAML file."""
    flat = config.flat()
    nested: dict[str, Any] = {"model": {"backbone": {"type": config.model.removeprefix("byol_"), "pretrained": False}}}
    for path, name in RENAMED.items():
        *sections, key = path.split(".")
        where = nested
        for section in sections:
            where = where.setdefault(section, {})
        where[key] = flat[name]
    return nested


def epochs_done(state: Mapping) -> int:
    """Whole epochs of a run: the one under way counts when its last batch is done."""
    progress = state["progress"]
    return progress["epoch"] + (state.get("batches") is not None and progress.get("batch", 0) >= state["batches"])


def is_inside_epoch(state: Mapping) -> bool:
    return epochs_done(state) == state["progress"]["epoch"] and state["progress"].get("batch", 0) > 0


def torch_scaler(scaler: Mapping | None) -> dict[str, float]:
    """GradScaler's state; its fresh one for a run that scaled nothing, which `load_state_dict` takes in either case."""
    from ppssl.engine.precision import LossScale

    values = dataclasses.asdict(LossScale()) | dict(scaler or {})
    return {theirs: values[ours] for theirs, ours in SCALER.items()}


def args_of(config: Config) -> Namespace:
    """The run's options as the authors' scripts have them."""
    flat = config.flat()
    height, width = flat["input_size"]
    flat["input_size"] = height if height == width else flat["input_size"]
    return Namespace(**{key: value for key, value in flat.items() if key not in ("task", "method")})
