"""BYOL's official YAML file (nested keys) as a recipe of this project (flat keys).

Source: blankWorld/BYOL-PyTorch `config/train_config.yaml` and what its code reads of it.
"""
import difflib
from collections.abc import Mapping
from typing import Any

from ppssl.dist import world
from ppssl.errors import BadRequest
from ppssl.models import registry

RENAMED = {
    "model.base_momentum": "base_momentum",
    "model.projection.hidden_dim": "projection_hidden",
    "model.projection.output_dim": "projection_dim",
    "model.predictor.hidden_dim": "prediction_hidden",
    "data.image_dir": "data_path",
    "data.data_workers": "num_workers",
    "data.train_batch_size": "batch_size",
    "data.num_examples": "num_examples",
    "optimizer.base_lr": "blr",
    "optimizer.momentum": "momentum",
    "optimizer.weight_decay": "weight_decay",
    "optimizer.total_epochs": "epochs",
    "optimizer.warmup_epochs": "warmup_epochs",
    "optimizer.exclude_bias_and_bn": "exclude_bias_and_bn",
    "checkpoint.resume_path": "resume",
    "checkpoint.save_epoch": "save_freq",
    "log.log_step": "print_freq",
}
READ_HERE = ("model.backbone.type", "model.projection.input_dim", "model.predictor.input_dim",
             "model.predictor.output_dim", "amp.sync_bn", "amp.opt_level")
FIXED = {
    "model.backbone.pretrained": (False, "nothing is downloaded here, training starts from random weights"),
    "data.use_local_dataloader": (True, "images are read from a local folder: set data.image_dir"),
    "data.dual_views": (True, "BYOL needs two views of every image"),
    "stage": ("train", "the linear evaluation is main_linprobe.py"),
}
STORAGE = ("data.train_list", "data.val_list", "data.endpoint", "data.key_id", "data.secret_id", "data.bucket",
           "checkpoint.time_stamp", "checkpoint.ckpt_prefix", "checkpoint.ckpt_endpoint", "checkpoint.ckpt_key_id",
           "checkpoint.ckpt_secret_id", "checkpoint.ckpt_bucket", "log.acc_log_file", "log.acc_log_png",
           "log.loss_log_file", "log.loss_log_png", "log.lr_log_file", "log.lr_log_png")
UNREAD = ("model.projection.type", "model.predictor.type", "optimizer.type", "data.resize_size", "data.val_batch_size",
          "distributed", "world_size", "rank", "local_rank")
AMP = {"O0": "none", "O1": "fp16"}


def translate(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The official file's content -> (flat keys, notes on what has no effect). BadRequest for what it cannot mean here."""
    given = flatten(content)
    known = (*RENAMED, *READ_HERE, *FIXED, *STORAGE, *UNREAD)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise BadRequest(f"BYOL's YAML has no key {key}{f': did you mean {near[0]}?' if near else ''}")
    for key, (value, fix) in FIXED.items():
        if given.get(key, value) != value:
            raise BadRequest(f"{key} must be {value}, not {given[key]!r}: {fix}")
    check_widths(given)
    flat = {new: given[old] for old, new in RENAMED.items() if given.get(old) is not None}
    return {"model": f"byol_{given['model.backbone.type']}", "amp": precision(given)} | flat, notes(given)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings on one level, keys joined by dots."""
    out = {}
    for key, value in content.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def check_widths(given: Mapping[str, Any]) -> None:
    """BadRequest where an input is not as wide as what goes into it."""
    from paddle import LazyGuard

    if "model.backbone.type" not in given:
        raise BadRequest("BYOL's YAML needs model.backbone.type, for instance resnet50")
    with LazyGuard():
        width = registry.create("classifier", given["model.backbone.type"]).width
    dim = given.get("model.projection.output_dim")
    needed = {"model.projection.input_dim": width, "model.predictor.input_dim": dim, "model.predictor.output_dim": dim}
    for key, value in needed.items():
        if given.get(key, value) != value:
            raise BadRequest(f"{key} must be {value}, not {given[key]!r}: as wide as what it takes or is compared with")


def precision(given: Mapping[str, Any]) -> str:
    """apex' opt_level as --amp. Batch norms always span the ranks."""
    level = given.get("amp.opt_level", "O0")
    if level not in AMP:
        raise BadRequest(f"amp.opt_level must be one of {', '.join(AMP)}, not {level!r}")
    if not given.get("amp.sync_bn", True) and world() > 1:
        raise BadRequest("amp.sync_bn must be true: batch norms take their statistics over all ranks here")
    return AMP[level]


def notes(given: Mapping[str, Any]) -> list[str]:
    """What the file says without effect, in a line for each reason."""
    said = {"names a storage service": [k for k in STORAGE if given.get(k) is not None],
            "is not read by the official code either (views are --input_size, the launcher sets the ranks)":
                [k for k in UNREAD if given.get(k) is not None]}
    out = [f"{', '.join(keys)} of BYOL's YAML has no effect: it {why}" for why, keys in said.items() if keys]
    if "data.image_dir" in given:
        out.append(f"images are read from {given['data.image_dir']}/train, not from its imagenet_train")
    return out
