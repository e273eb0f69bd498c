"""Training states: the authors' checkpoints as runs that `--resume` continues, and runs as the authors' checkpoints.

Parameters of an optimizer are told by position in PyTorch and by name here; the order of the positions is that of the
groups of the method's own optimizer, built around a model without memory.
"""
import dataclasses
import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.contents import Contents
from convert.formats import Refused
from convert.optimizer import SLOTS, extra_tensors, shapes_fit, slots_of, steps_taken, torch_state
from convert.recognise import Network
from ppssl import config as configs
from ppssl import methods
from ppssl.config import Config
from ppssl.errors import BadRequest
from ppssl.models import registry
from ppssl.optim.schedules import scale_lr

MACHINE = {"data_path", "output_dir", "log_dir", "resume", "start_epoch", "num_workers", "device"}   # of another machine
SCALER = {"scale": "scale", "growth_factor": "growth_factor", "backoff_factor": "backoff_factor",
          "growth_interval": "growth_interval", "_growth_tracker": "growth_tracker"}


@dataclass(frozen=True)
class State:
    """A training state to be stored as a run. names: {position in the file: parameter}; slots: {theirs: ours}; tensors:
    what the file does not hold as such; metadata: what `ppssl.engine.checkpoint` reads."""
    names: Mapping[int, str]
    slots: Mapping[str, str]
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


def is_training(tree: Any) -> bool:
    """Whether a file holds an optimizer's state."""
    optimizer = tree.get("optimizer") if isinstance(tree, Mapping) else None
    return isinstance(optimizer, Mapping) and "param_groups" in optimizer and "epoch" in tree


def from_torch(contents: Contents) -> State:
    """The training state of an authors' checkpoint. Raises Refused where its optimizer is not the method's."""
    tree, network = contents.tree, contents.main.network
    config = config_of(contents.args, network)
    optimizer = trainee(config, network).build_optimizer()
    names = [name for group in optimizer.groups for name, _ in group.params]
    positions = [i for group in tree["optimizer"]["param_groups"] for i in group["params"]]
    if len(positions) != len(names):
        raise Refused(f"its optimizer holds {len(positions)} parameters, {config.method} trains {len(names)} of {network.title}; "
                      "continue with the weights alone (--finetune)")
    order = dict(zip(positions, names))
    state = tree["optimizer"]["state"]
    shapes_fit(state, order, network.shapes)
    steps = max(steps_taken(state), tree.get("steps", 0))
    progress = {"epoch": tree["epoch"] + 1, "step": steps}
    metadata = {"state": json.dumps({"progress": progress, "optimizer_steps": steps, "world": None,
                                     "scaler": scaler_of(tree.get("scaler"))}), "config": json.dumps(config.flat())}
    return State(order, slots_of(state), extra_tensors(state, order, optimizer), metadata)


def scaler_of(state: Any) -> dict | None:
    """GradScaler's state by our names; None where it scaled nothing."""
    known = {ours: state[theirs] for theirs, ours in SCALER.items() if theirs in state} if isinstance(state, Mapping) else {}
    return known if "scale" in known else None


def config_of(args: Mapping[str, Any], network: Network) -> Config:
    """What this project would have been asked for the run: the official options that have the same meaning here."""
    task = "linprobe" if network.probe else "finetune" if network.family.task == "classifier" else "pretrain"
    method = next((m for m in methods.of_task(task) if network.family.name in m.families), None)
    if method is None:
        raise Refused(f"no method here trains a {network.family.title}; continue with the weights alone (--finetune)")
    sections = (configs.Data, configs.Train, configs.Run, method.Options)
    fields = {f.name: f for section in sections for f in dataclasses.fields(section)}
    values = {}
    for name, field in fields.items():
        given = args.get(name, args.get(field.metadata.get("alias"), None))
        if given is not None and name not in MACHINE:
            try:
                values[name] = configs.coerce(given, field.type, name, "args")
            except BadRequest:
                continue                                  # an option of the same name that means something else there
    if "blr" not in args:
        values.pop("lr", None)                            # scaled already where the flag is not
    if "img_size" in network.sizes:
        values["input_size"] = configs.Size(network.sizes["img_size"])
    if "num_classes" in network.sizes and "nb_classes" in fields:
        values["nb_classes"] = network.sizes["num_classes"]
    return configs.build(task, method, network.entry or args.get("model") or network.family.name, method.defaults | values)


def trainee(config: Config, network: Network):
    """A method around a model without memory, for its optimizer's groups: its constructor would ask for other files."""
    from paddle import LazyGuard

    method = object.__new__(methods.get(config.task, config.method))
    method.config, method.options = config, config.options
    with LazyGuard():
        method.model = network.build()
    return method


def to_torch(contents: Contents, model: Mapping[str, np.ndarray], ema: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    """The checkpoint that the authors' `load_model` takes, from a run of this project.

    model, ema: official weights, in PyTorch's layout. The entries are model, optimizer, epoch (the last that is finished),
    scaler, args, and model_ema where the run has an average. Raises Refused where the stored config is not readable.
    """
    state, network = json.loads(contents.loaded.metadata["state"]), contents.main.network
    try:
        config = configs.restore(json.loads(contents.loaded.metadata["config"]))
    except (BadRequest, KeyError) as error:
        raise Refused(f"{contents.path}: its stored config is not readable ({error}); was it written by a newer version?") from None
    optimizer = trainee(config, network).build_optimizer()
    train = config.train
    lr = train.lr or scale_lr(train.blr, train.batch_size, train.accum_iter, state["world"] or 1)
    stored = contents.tree.get("optimizer", {})
    tree = {"model": dict(model),
            "optimizer": torch_state(stored, state["optimizer_steps"], optimizer, network.linear, lr),
            "epoch": epochs_done(state) - 1, "scaler": torch_scaler(state["scaler"]), "args": args_of(config)}
    return tree | ({"model_ema": dict(ema)} if ema else {})


def epochs_done(state: Mapping) -> int:
    """Whole epochs of a run: the one under way counts when its last batch is done."""
    progress = state["progress"]
    return progress["epoch"] + (state.get("batches") is not None and progress.get("batch", 0) >= state["batches"])


def is_inside_epoch(state: Mapping) -> bool:
    return epochs_done(state) == state["progress"]["epoch"] and state["progress"].get("batch", 0) > 0


def torch_scaler(scaler: Mapping | None) -> dict[str, float]:
    """GradScaler's state; its fresh one for a run that scaled nothing, which `load_state_dict` takes in either case."""
    fresh = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "growth_tracker": 0}
    values = fresh | dict(scaler or {})
    return {theirs: values[ours] for theirs, ours in SCALER.items()}


def args_of(config: Config) -> Namespace:
    """The run's options as the authors' scripts have them."""
    flat = config.flat()
    height, width = flat["input_size"]
    flat["input_size"] = height if height == width else flat["input_size"]
    return Namespace(**{key: value for key, value in flat.items() if key not in ("task", "method")})


