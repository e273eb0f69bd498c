"""BootMAE: pretraining with its teacher, masks, schedules. The classifiers' kinds stand in boot_classifiers.py."""
import random

import numpy as np
from paddle import LazyGuard

from convert.layout import transposed_keys
from convert.optimizer import adam_from_torch
from ppssl import config
from ppssl.data.masks import BlockMask
from ppssl.engine.loop import Progress
from ppssl.methods.boot_finetune import BootFinetune
from ppssl.methods.bootmae import BootMAE, normalized_patches, patch_weights
from ppssl.models import registry
from ppssl.models.bootmae import BootMAE as Network
from ppssl.models.bootmae import hidden_mask, shuffled_order
from ppssl.optim.schedules import Clock, feature_ramp, scale_lr, step_cosine, step_drop, teacher_decay
from tests.golden.adapters import boot_classifiers
from tests.golden.adapters.boot_classifiers import (classification, finals_of, official_kwargs, recorded_rates,
                                                    understood)
from tests.golden.adapters.common import gradients, load_official, official_state, run_training, tensor
from tests.golden.adapters.mae import check_adamw, close, manifest_checks, no_state
from tests.golden.case import Case
from tests.golden.runner import same

# the masks of these cases are given, so none is drawn
NO_BLOCKS = {"num_mask_patches": 1, "min_mask_patches_per_block": 1, "max_mask_patches_per_block": 1}
LOOP = ("feature_weight", "epochs", "mask_num", "weight_mask", "model_ema", "model_ema_decay", "model_ema_dynamic",
        "weight_decay", "lr", "clip_grad", "update_freq", "warmup_epochs", "warmup_steps", "min_lr", "weight_decay_end",
        "lr_scheduler", "drop_path")
# what says how the case was cut, and flags that the official code ignores
NOT_SET = ("start_epoch", "n_epochs", "steps_per_epoch", "window_size", "patch_size", "opt", "opt_eps", "opt_betas",
           "momentum")


def network(kwargs: dict) -> Network:
    return Network(**{k: v for k, v in official_kwargs(kwargs).items() if k != "num_classes"})


def draws_of(order: np.ndarray) -> dict[str, np.ndarray]:
    """Draws that put patches [..., B, L] into this order: no block, the noise descending along the order, no roll."""
    rank = np.argsort(order, axis=-1)
    noise = ((order.shape[-1] - rank) / (order.shape[-1] + 1)).astype(np.float32)
    return {"blocks": np.zeros(order.shape, np.uint8), "noise": noise, "roll": np.zeros(order.shape[:-1], np.int64)}


def pretraining(model, settings: dict, teacher: dict | None = None) -> BootMAE:
    """The product's method around a model; its teacher starts from an official state, or from the model."""
    values = {"model_ema": True} | NO_BLOCKS | settings
    method = BootMAE(config.build("pretrain", BootMAE, "bootmae_base", values), model)
    if teacher is not None:
        load_official(method.teacher.network, teacher)
    return method


def pretrain_forward(case: Case) -> dict:
    spec, loop, inputs = case.spec, case.spec["loop"], case.inputs
    decay = ("model_ema_decay", "model_ema_dynamic")
    understood(loop, "mask_num", "feature_weight", "epochs", "epoch", *decay)
    file = official_state(case.file("checkpoint.pth"))
    batch = {"image": tensor(inputs["images"]), "blocks": tensor(inputs["block_masks"]),
             "noise": tensor(inputs["shuffle_noise"]).flatten(1),
             "roll": tensor(np.full(len(inputs["images"]), inputs["shuffle_roll"]))}
    out = {"out/feature_weight": feature_ramp(loop["epoch"], loop["feature_weight"], loop["epochs"]),
           "out/ema_decay": teacher_decay(loop["epoch"], *(loop[k] for k in decay))}
    for name, weighted in (("plain", False), ("weighted", True)):
        model = network(spec["kwargs"])
        load_official(model, file["model"])
        settings = {k: loop[k] for k in ("mask_num", "feature_weight", "epochs", *decay)}
        method = pretraining(model, settings | {"weight_mask": weighted}, file["model_ema"])
        out |= losses(method, batch, loop["epoch"], f"out/{name}/")
    order = method.order(batch)
    return out | predictions(method, batch["image"], order) | gradients(model) | {
        "json/idx_shuffle": same(order.numpy().tolist(), inputs["idx_shuffle"].tolist())}


def losses(method: BootMAE, batch: dict, epoch: int, prefix: str) -> dict:
    """The losses and their weights; the gradients stay in the model."""
    method.train_mode()
    loss, stats = method.loss(method.model, batch, Clock(epoch, 0, 1, 0))
    loss.backward()
    grid = method.model.patch_embed.grid
    weight = patch_weights(method.order(batch), method.mask_num, grid, method.options.weight_mask)
    return {prefix + k: v.numpy() for k, v in (stats | {"patch_weight": weight}).items()}


def predictions(method: BootMAE, images, order) -> dict:
    """What the network predicts and the targets, with the mask."""
    model = method.model
    model.eval()
    pixels, features = model(images, order, method.mask_num)
    mask = hidden_mask(order, method.mask_num)[0].reshape([-1, *model.patch_embed.grid])
    arrays = {"pixel_pred": pixels, "feature_pred": features, "loss_mask": mask,
              "image_norm": target_image(model, images),
              "feature_target": method.teacher.network.patch_features(images)}
    return {f"out/{k}": v.numpy() for k, v in arrays.items()}


def target_image(model, images):
    """The pixel target as an image [B, C, H, W]."""
    (h, w), (ph, pw) = model.patch_embed.grid, model.patch_embed.patch_size
    target = normalized_patches(images, (ph, pw)).reshape([len(images), h, w, -1, ph, pw])
    return target.transpose([0, 3, 1, 4, 2, 5]).reshape(images.shape)


def pretrain_checkpoint(case: Case) -> dict:
    spec, file = case.spec, official_state(case.file("checkpoint.pth"))
    model = network(spec["kwargs"])
    load_official(model, file["model"])
    method = pretraining(model, {"mask_num": spec["mask_num"], "feature_weight": 1.0}, file["model_ema"])
    found = predictions(method, tensor(case.inputs["images"]), tensor(case.inputs["idx_shuffle"]))
    return found | {"json/top_level_keys": same(list(file), spec["top_level_keys"]),
                    "json/epoch": same(file["epoch"], spec["epoch"])}


def run_pretraining(case: Case, model, progress: Progress, restore, teacher: dict) -> dict:
    """The product's method, optimizer and loop over the case's micro-batches, a trace's value for each of them."""
    loop, images, order = case.spec["loop"], case.inputs["images"], case.inputs["idx_shuffle"]
    understood(loop, *LOOP, *NOT_SET)
    if len(images) != loop["n_epochs"] * loop["steps_per_epoch"] * loop["update_freq"]:
        raise ValueError("the micro-batches are not those of the case's epochs")
    settings = {k: loop[k] for k in LOOP if k in loop}
    settings |= {"accum_iter": settings.pop("update_freq"), "batch_size": images.shape[1]}
    settings["lr"] /= scale_lr(1.0, settings["batch_size"], settings["accum_iter"], 1)         # the case's is scaled
    method = pretraining(model, settings, teacher)
    check_adamw(case.spec["optimizer"], method.build_optimizer().betas)
    rates, epochs = recorded_rates(method), range(progress.epoch, progress.epoch + loop["n_epochs"])
    out = run_training(method, {"image": images} | draws_of(order), loop["n_epochs"], progress, restore)
    decays = [teacher_decay(e, loop["model_ema_decay"], loop["model_ema_dynamic"]) for e in epochs]
    ramp = [feature_ramp(e, loop["feature_weight"], loop["epochs"]) for e in epochs]
    return out | finals_of(model, method.teacher) | {
        "trace/lr": np.repeat(out["trace/lr"], loop["update_freq"]),
        "trace/weight_decay": np.repeat([decay for _, decay in rates], loop["update_freq"]),
        "trace/ema_decay_per_epoch": np.array(decays), "trace/feature_weight_per_epoch": np.array(ramp)}


def pretrain_train(case: Case) -> dict:
    file, model = official_state(case.file("checkpoint.pth")), network(case.spec["kwargs"])
    load_official(model, file["model"])
    progress = Progress(epoch=case.spec["loop"]["start_epoch"])
    return run_pretraining(case, model, progress, no_state, file[case.spec["teacher_start"]])


def resume_checkpoint(case: Case) -> dict:
    spec, file = case.spec, official_state(case.file("checkpoint.pth"))
    loop, model = spec["loop"], network(spec["kwargs"])
    load_official(model, file["model"])
    if file["epoch"] + 1 != loop["start_epoch"]:
        raise ValueError(f"the file ends epoch {file['epoch']}, the case starts at {loop['start_epoch']}")
    names = []

    def restore(optimizer) -> None:
        names.extend(name for g in optimizer.groups for name, _ in g.params)
        optimizer.load(*adam_from_torch(file["optimizer"], optimizer, transposed_keys(model)))
    out = run_pretraining(case, model, Progress(epoch=loop["start_epoch"]), restore, file["model_ema"])
    scaled = scale_lr(spec["lr_flag"], spec["batch_size"], loop["update_freq"], spec["world_size"])
    return out | {"json/optimizer_param_order": same(names, spec["optimizer_param_order"]),
                  "json/top_level_keys": same(list(file), spec["top_level_keys"]),
                  "json/epoch": same(file["epoch"], spec["epoch"]),
                  "json/scaler": same(dict(file["scaler"]), spec["scaler"]),
                  "json/lr_rule": close({"lr": [scaled]}, {"lr": [loop["lr"]]})}


def masking(case: Case) -> dict:
    out = {}
    for name, table in case.spec["tables"].items():
        understood(table, "win", "num", "lo", "hi", "count_min", "count_max")
        masks = BlockMask((table["win"], table["win"]), table["num"], table["lo"], table["hi"])
        seeds = case.inputs[name.replace("masks", "python_seed")]
        found = out[f"out/{name}"] = np.stack([masks(random.Random(int(seed))) for seed in seeds])
        counts = found.sum((1, 2))
        out[f"json/{name}/counts"] = same([counts.min(), counts.max()], [table["count_min"], table["count_max"]])
    for name, roll in case.spec["rolls"].items():
        blocks, noise = (tensor(case.inputs[f"index/{name}/{what}"]).flatten(1) for what in ("masks", "noise"))
        order = shuffled_order(blocks, noise, tensor(np.full(len(blocks), roll)))
        out[f"out/index/{name}/idx_shuffle"] = order.numpy()
    return out


def schedules(case: Case) -> dict:
    curves = {"feature_weight": feature_weights, "ema_decay": ema_decays, "lr": learning_rates}
    return {f"out/{name}": np.array(curves[name.split("/")[0]](table)) for name, table in case.spec["tables"].items()}


def feature_weights(table: dict) -> list[float]:
    understood(table, "feature_weight", "epochs")
    return [feature_ramp(e, table["feature_weight"], table["epochs"]) for e in range(table["epochs"])]


def ema_decays(table: dict) -> list[float]:
    understood(table, "model_ema_decay", "model_ema_dynamic", "epochs")
    return [teacher_decay(e, table["model_ema_decay"], table["model_ema_dynamic"]) for e in range(table["epochs"])]


def learning_rates(table: dict) -> list[float]:
    """By the method itself; by the bare schedule where the warm-up does not start at 0, which no method asks for."""
    understood(table, "base_value", "final_value", "epochs", "niter_per_ep", "warmup_epochs", "warmup_steps",
               "start_warmup_value", "kind")
    peak, floor, per_epoch = table["base_value"], table["final_value"], table["niter_per_ep"]
    start, steps = table.get("start_warmup_value", 0.0), range(table["epochs"] * per_epoch)
    if start == 0.0:
        settings = {"lr": peak, "min_lr": floor, "lr_scheduler": table["kind"]}
        settings |= {k: table[k] for k in ("epochs", "warmup_epochs", "warmup_steps") if k in table}
        model = registry.create("classifier", "bootmae_tiny_patch4")
        method = BootFinetune(config.build("finetune", BootFinetune, "bootmae_base", settings), model)
        return [method.rates(Clock(step // per_epoch, step % per_epoch, per_epoch, step))[0] for step in steps]
    given = table.get("warmup_steps", -1)
    warmup = given if given > 0 else table["warmup_epochs"] * per_epoch
    if table["kind"] == "cos":
        return [step_cosine(step, peak, floor, warmup, len(steps), start) for step in steps]
    return [step_drop(step, peak, warmup, len(steps) - 100 * per_epoch, start) for step in steps]


def full_size(case: Case) -> dict:
    spec, kwargs = case.spec, dict(case.spec["model_kwargs"])
    task = "pretrain" if "modeling_pretrain" in spec["official_class"] else "classifier"
    if "use_mean_pooling" in kwargs:
        kwargs["global_pool"] = kwargs.pop("use_mean_pooling")
    with LazyGuard():
        lazy = registry.create(task, spec["model"], **kwargs)
    frozen = [name for name, p in lazy.named_parameters() if not p.trainable]
    out = manifest_checks(case, lazy, case.manifest()) | {"json/frozen": same(sorted(frozen), sorted(spec["frozen"]))}
    if not case.arrays:
        return out
    model = registry.create(task, spec["model"], **kwargs)
    load_official(model, case.synthetic_weights())
    images = tensor(case.inputs["image"])
    return out | (classification(model, images) if task == "classifier" else full_pretraining(case, model, images))


def full_pretraining(case: Case, model, images) -> dict:
    loop, order = case.spec["loop"], np.atleast_2d(case.inputs["idx_shuffle"])
    understood(loop, "mask_num", "feature_weight", "weight_mask")
    method = pretraining(model, loop | {"epochs": 1})                                          # one epoch: no ramp
    batch = {"image": images} | {k: tensor(v) for k, v in draws_of(order).items()}
    out = losses(method, batch, 0, "out/")
    for name, value in predictions(method, images, tensor(order)).items():
        out |= summary(name, value)
    return out


def summary(name: str, value: np.ndarray) -> dict:
    """64 elements spread over the flattened array, their places, and mean, deviation, mean and largest magnitude."""
    flat = value.reshape(-1)
    places = np.linspace(0, flat.size - 1, 64).astype(np.int64)
    wide = flat.astype(np.float64)
    stats = np.array([wide.mean(), wide.std(), np.abs(wide).mean(), np.abs(wide).max()])
    return {f"{name}/strided": flat[places], f"{name}/strided_index": places, f"{name}/stats": stats}


KINDS = boot_classifiers.KINDS | {
    "pretrain_forward": pretrain_forward, "pretrain_train": pretrain_train, "pretrain_checkpoint": pretrain_checkpoint,
    "resume_checkpoint": resume_checkpoint, "masking": masking, "schedules": schedules, "full_size": full_size}
