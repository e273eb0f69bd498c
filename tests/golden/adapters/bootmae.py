"""BootMAE: pretraining with its teacher, masks, schedules, loading, finetuning, probing."""
import random
from collections.abc import Mapping

import numpy as np

from convert.layout import relayout, transposed_keys
from convert.optimizer import adam_from_torch
from ppssl import config
from ppssl.data.masks import BlockMask
from ppssl.engine.loop import Progress
from ppssl.engine.weights import assign
from ppssl.methods.boot_finetune import BootFinetune
from ppssl.methods.boot_linprobe import BootLinearProbe
from ppssl.methods.boot_load import read_encoder
from ppssl.methods.bootmae import BootMAE, normalized_patches, patch_weights
from ppssl.methods.linprobe import attach_probe_head
from ppssl.models import registry
from ppssl.models.boot_vit import BootVisionTransformer
from ppssl.models.bootmae import BootMAE as Network
from ppssl.models.bootmae import hidden_mask, shuffled_order
from ppssl.optim.schedules import Clock, feature_ramp, scale_lr, step_cosine, step_drop, teacher_decay
from tests.golden.adapters.common import gradients, load_official, official_arrays, official_state, run_training, tensor
from tests.golden.adapters.mae import check_adamw, close, manifest_checks, no_state
from tests.golden.case import Case
from tests.golden.runner import Check, same

WITHOUT_EFFECT = ("init_values", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias", "init_std", "init_scale")
NO_BLOCKS = {"num_mask_patches": 1, "min_mask_patches_per_block": 1, "max_mask_patches_per_block": 1}     # masks are given here
UNSET = 12345.0


def official_kwargs(kwargs: dict) -> dict:
    """The official class's arguments by our names. Raises ValueError for a setting that is never used."""
    kwargs = {k: v for k, v in kwargs.items() if k not in WITHOUT_EFFECT}
    if kwargs.pop("qkv_bias", False) is not True:
        raise ValueError("no official configuration has qkv_bias off")
    return kwargs | {"eps": kwargs.pop("norm_layer_eps")}


def pretraining_network(kwargs: dict) -> Network:
    return Network(**{k: v for k, v in official_kwargs(kwargs).items() if k != "num_classes"})


def classifier(kwargs: dict) -> BootVisionTransformer:
    kwargs = official_kwargs(kwargs)
    return BootVisionTransformer(global_pool=kwargs.pop("use_mean_pooling", True), **kwargs)


def understood(settings: Mapping, *known: str) -> None:
    """Raises ValueError for a setting that this adapter does not know."""
    if set(settings) - set(known):
        raise ValueError(f"settings that are not understood: {sorted(set(settings) - set(known))}")


def draws_of(order: np.ndarray) -> dict[str, np.ndarray]:
    """Draws that put patches [..., B, L] into this order: no block, the noise descending along the order, no roll."""
    rank = np.argsort(order, axis=-1)
    noise = ((order.shape[-1] - rank) / (order.shape[-1] + 1)).astype(np.float32)
    return {"blocks": np.zeros(order.shape, np.uint8), "noise": noise, "roll": np.zeros(order.shape[:-1], np.int64)}


def pretraining(model, settings: dict, teacher: dict | None = None) -> BootMAE:
    """The product's method around a model; its teacher starts from an official state, or from the model."""
    method = BootMAE(config.build("pretrain", BootMAE, "bootmae_base", {"model_ema": True} | NO_BLOCKS | settings), model)
    if teacher is not None:
        load_official(method.teacher.network, teacher)
    return method


def pretrain_forward(case: Case) -> dict:
    spec, loop = case.spec, case.spec["loop"]
    understood(loop, "mask_num", "feature_weight", "epochs", "epoch", "model_ema_decay", "model_ema_dynamic")
    file, inputs = official_state(case.file("checkpoint.pth")), case.inputs
    batch = {"image": tensor(inputs["images"]), "blocks": tensor(inputs["block_masks"]), "noise": tensor(inputs["shuffle_noise"]).flatten(1),
             "roll": tensor(np.full(len(inputs["images"]), inputs["shuffle_roll"]))}
    out = {"out/feature_weight": feature_ramp(loop["epoch"], loop["feature_weight"], loop["epochs"]),
           "out/ema_decay": teacher_decay(loop["epoch"], loop["model_ema_decay"], loop["model_ema_dynamic"])}
    for name, weighted in (("plain", False), ("weighted", True)):
        model = pretraining_network(spec["kwargs"])
        load_official(model, file["model"])
        settings = {k: loop[k] for k in ("mask_num", "feature_weight", "epochs", "model_ema_decay", "model_ema_dynamic")}
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
    weight = patch_weights(method.order(batch), int(method.options.mask_num), method.model.patch_embed.grid, method.options.weight_mask)
    return {prefix + k: v.numpy() for k, v in stats.items()} | {f"{prefix}patch_weight": weight.numpy()}


def predictions(method: BootMAE, images, order) -> dict:
    """What the network predicts and the targets, with the mask."""
    model, mask_num = method.model, int(method.options.mask_num)
    model.eval()
    pixels, features = model(images, order, mask_num)
    mask = hidden_mask(order, mask_num)[0].reshape([-1, *model.patch_embed.grid])
    arrays = {"pixel_pred": pixels, "feature_pred": features, "feature_target": method.teacher.network.patch_features(images),
              "image_norm": target_image(model, images), "loss_mask": mask}
    return {f"out/{k}": v.numpy() for k, v in arrays.items()}


def target_image(model, images):
    """The pixel target as an image [B, C, H, W]."""
    (h, w), (ph, pw) = model.patch_embed.grid, model.patch_embed.patch_size
    target = normalized_patches(images, (ph, pw)).reshape([len(images), h, w, -1, ph, pw])
    return target.transpose([0, 3, 1, 4, 2, 5]).reshape(images.shape)


def pretrain_checkpoint(case: Case) -> dict:
    spec, file = case.spec, official_state(case.file("checkpoint.pth"))
    model = pretraining_network(spec["kwargs"])
    load_official(model, file["model"])
    method = pretraining(model, {"mask_num": spec["mask_num"], "feature_weight": 1.0}, file["model_ema"])
    found = predictions(method, tensor(case.inputs["images"]), tensor(case.inputs["idx_shuffle"]))
    return found | {"json/top_level_keys": same(list(file), spec["top_level_keys"]), "json/epoch": same(file["epoch"], spec["epoch"])}


LOOP = ("feature_weight", "epochs", "mask_num", "weight_mask", "model_ema", "model_ema_decay", "model_ema_dynamic", "weight_decay", "lr",
        "clip_grad", "update_freq", "warmup_epochs", "warmup_steps", "min_lr", "weight_decay_end", "lr_scheduler", "drop_path")
FIXED = ("start_epoch", "n_epochs", "steps_per_epoch", "window_size", "patch_size", "opt", "opt_eps", "opt_betas", "momentum")


def run_pretraining(case: Case, model, progress: Progress, restore, teacher: dict | None) -> dict:
    """The product's method, optimizer and loop over the case's micro-batches, one value of a trace for each of them."""
    loop, images, order = case.spec["loop"], case.inputs["images"], case.inputs["idx_shuffle"]
    understood(loop, *LOOP, *FIXED)
    if len(images) != loop["n_epochs"] * loop["steps_per_epoch"] * loop["update_freq"]:
        raise ValueError("the micro-batches are not those of the case's epochs")
    settings = {k: loop[k] for k in LOOP if k in loop}
    settings |= {"accum_iter": settings.pop("update_freq"), "batch_size": images.shape[1]}
    settings["lr"] /= scale_lr(1.0, settings["batch_size"], settings["accum_iter"], 1)        # the case gives the scaled rate
    method = pretraining(model, settings, teacher)
    check_adamw(case.spec["optimizer"], method.build_optimizer().betas)
    rates = recorded_rates(method)
    out = run_training(method, {"image": images} | draws_of(order), loop["n_epochs"], progress, restore)
    epochs = range(progress.epoch - loop["n_epochs"], progress.epoch)
    return out | finals_of(model, method.teacher.network) | {
        "trace/lr": np.repeat(out["trace/lr"], loop["update_freq"]), "trace/weight_decay": np.repeat([r[1] for r in rates], loop["update_freq"]),
        "trace/ema_decay_per_epoch": np.array([teacher_decay(e, loop["model_ema_decay"], loop["model_ema_dynamic"]) for e in epochs]),
        "trace/feature_weight_per_epoch": np.array([feature_ramp(e, loop["feature_weight"], loop["epochs"]) for e in epochs])}


def recorded_rates(method) -> list[tuple[float, float]]:
    """A list that fills with what the method tells the loop."""
    rates, ask = [], method.rates

    def rates_of(clock: Clock):
        rates.append(ask(clock))
        return rates[-1]
    method.rates = rates_of
    return rates


def finals_of(model, average) -> dict:
    return official_arrays(model, "final/model", lambda t: t) | official_arrays(average, "final/ema", lambda t: t)


def pretrain_train(case: Case) -> dict:
    file, model = official_state(case.file("checkpoint.pth")), pretraining_network(case.spec["kwargs"])
    load_official(model, file["model"])
    progress = Progress(epoch=case.spec["loop"]["start_epoch"])
    return run_pretraining(case, model, progress, no_state, file[case.spec["teacher_start"]])


def resume_checkpoint(case: Case) -> dict:
    spec, file = case.spec, official_state(case.file("checkpoint.pth"))
    loop, model = spec["loop"], pretraining_network(spec["kwargs"])
    load_official(model, file["model"])
    if file["epoch"] + 1 != loop["start_epoch"]:
        raise ValueError(f"the file ends epoch {file['epoch']}, the case starts at {loop['start_epoch']}")
    orders = []

    def restore(optimizer) -> None:
        orders.extend(name for g in optimizer.groups for name, _ in g.params)
        optimizer.load(*adam_from_torch(file["optimizer"], optimizer, transposed_keys(model)))
    out = run_pretraining(case, model, Progress(epoch=loop["start_epoch"]), restore, file["model_ema"])
    ours = scale_lr(spec["lr_flag"], spec["batch_size"], loop["update_freq"], spec["world_size"])
    return out | {"json/optimizer_param_order": same(orders, spec["optimizer_param_order"]), "json/epoch": same(file["epoch"], spec["epoch"]),
                  "json/top_level_keys": same(list(file), spec["top_level_keys"]), "json/scaler": same(dict(file["scaler"]), spec["scaler"]),
                  "json/lr_rule": close({"lr": [ours]}, {"lr": [loop["lr"]]})}


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
        out[f"out/index/{name}/idx_shuffle"] = shuffled_order(blocks, noise, tensor(np.full(len(blocks), roll))).numpy()
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
    understood(table, "base_value", "final_value", "epochs", "niter_per_ep", "warmup_epochs", "warmup_steps", "start_warmup_value", "kind")
    per_epoch, start, peak = table["niter_per_ep"], table.get("start_warmup_value", 0.0), table["base_value"]
    steps = table["epochs"] * per_epoch
    settings = {"lr": peak, "min_lr": table["final_value"], "lr_scheduler": table["kind"]} | {
        k: table[k] for k in ("epochs", "warmup_epochs", "warmup_steps") if k in table}
    method = BootFinetune(config.build("finetune", BootFinetune, "bootmae_base", settings), registry.create("classifier", "bootmae_tiny_patch4"))
    if start == 0.0:
        return [method.rates(Clock(step // per_epoch, step % per_epoch, per_epoch, step))[0] for step in range(steps)]
    warmup = table["warmup_steps"] if table.get("warmup_steps", -1) > 0 else table["warmup_epochs"] * per_epoch
    if table["kind"] == "cos":
        return [step_cosine(step, peak, table["final_value"], warmup, steps, start) for step in range(steps)]
    return [step_drop(step, peak, warmup, steps - 100 * per_epoch, start) for step in range(steps)]


def finetuning(model, settings: dict) -> BootFinetune:
    return BootFinetune(config.build("finetune", BootFinetune, "bootmae_base", BootFinetune.defaults | settings), model)


def finetune_forward(case: Case) -> dict:
    spec, model = case.spec, classifier(case.spec["kwargs"])
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    out = classification(model, tensor(case.inputs["images"]))
    method = finetuning(model, {k: spec[k] for k in ("layer_decay", "backbone_decay", "weight_decay")})
    method.train_mode()
    loss, _ = method.loss(model, {"image": tensor(case.inputs["images"]), "target": tensor(case.inputs["soft_targets"])}, None)
    loss.backward()
    return out | gradients(model) | param_groups(method, spec) | {"out/loss": loss.numpy()}


def classification(model, images) -> dict:
    model.eval()
    features = model.forward_features(images)
    return {"out/features": features.numpy(), "out/logits": model.head(features).numpy()}


def param_groups(method: BootFinetune, spec: dict) -> dict:
    groups = {name: [g.lr_scale, g.weight_decay] for g in method.groups() for name, _ in g.params}
    return {"json/param_groups": close(groups, spec["param_groups"])}


def finetune_train(case: Case) -> dict:
    spec, loop, model = case.spec, case.spec["loop"], classifier(case.spec["kwargs"])
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    keys = ("lr", "min_lr", "weight_decay", "weight_decay_end", "epochs", "warmup_epochs", "warmup_steps", "update_freq", "clip_grad",
            "model_ema", "model_ema_decay")
    understood(loop, *keys, "start_epoch", "n_epochs", "steps_per_epoch")
    if spec["loss"] != "soft_target_cross_entropy" or not loop["model_ema"]:
        raise ValueError(f"a finetuning this adapter does not know: {spec['loss']}, average {loop['model_ema']}")
    settings = {k: loop[k] for k in keys if k in loop} | {k: spec[k] for k in ("layer_decay", "backbone_decay")}
    settings |= {"accum_iter": settings.pop("update_freq"), "batch_size": case.inputs["images"].shape[1]}
    method = finetuning(model, settings)
    check_adamw(spec["optimizer"], method.build_optimizer().betas)
    groups, rates = param_groups(method, spec), recorded_rates(method)
    batches = {"image": case.inputs["images"], "target": case.inputs["soft_targets"]}
    out = run_training(method, batches, loop["n_epochs"], Progress(epoch=loop["start_epoch"]), no_state)
    return out | groups | finals_of(model, method.average.network) | {"trace/weight_decay": np.array([r[1] for r in rates])}


def finetune_load(case: Case) -> dict:
    """The product's loading of the file, seen from outside: which tensors it set, and what of the file they equal."""
    spec, path, model = case.spec, case.file("checkpoint.pth"), classifier(case.spec["finetune_kwargs"])
    for t in model.state_dict().values():
        t.set_value(np.full(t.shape, UNSET, np.float32))
    finetuning(model, {"model_key": spec["model_key"]}).load(str(path))
    tree = official_state(path)
    taken = next((key for key in spec["model_key"].split("|") if key in tree), None)
    file = tree if taken is None else tree[taken]
    state = relayout({k: v.numpy() for k, v in model.state_dict().items()}, transposed_keys(model))
    source = {k: next((f for f, a in file.items() if np.array_equal(a, v)), None) for k, v in state.items() if not (v == UNSET).all()}
    kept = [k for k in state if k not in source]
    assign(model, relayout({k: case.inputs[f"kept/{k}"] for k in kept}, transposed_keys(model)))
    unused = [f for f in file if f not in source.values()]
    return {"json/key_taken": same(taken, spec["key_taken"]), "json/loaded": same(sorted(source), sorted(spec["loaded"])),
            "json/loaded_from": same(source, spec["loaded_from"]), "json/kept_own_init": same(sorted(kept), sorted(spec["kept_own_init"])),
            "json/unused_from_checkpoint": same(sorted(unused), sorted(spec["unused_from_checkpoint"])),
            "out/features": classification(model, tensor(case.inputs["images"]))["out/features"]}


def linprobe(case: Case) -> dict:
    spec, settings, model, path = case.spec, case.spec["optimizer"], classifier(case.spec["kwargs"]), case.file("checkpoint.pth")
    understood(settings, "lr", "min_lr", "weight_decay", "warmup_epochs", "epochs", "epoch", "name", "momentum", "trust_coefficient")
    report = assign(model, read_encoder(str(path), model, "model"))
    values = {k: settings[k] for k in ("lr", "min_lr", "weight_decay", "warmup_epochs", "epochs")}
    method = BootLinearProbe(config.build("linprobe", BootLinearProbe, "base_patch16_224", values), model)
    method.load(str(path))
    start = {k.removeprefix("head_init/"): v for k, v in case.inputs.items() if k.startswith("head_init/")}
    assign(model, relayout(start, transposed_keys(model)))
    attach_probe_head(model)
    optimizer, test_images = method.build_optimizer(), tensor(case.inputs["test_images"])
    if (optimizer.momentum, optimizer.trust) != (settings["momentum"], settings["trust_coefficient"]) or "LARS" not in settings["name"]:
        raise ValueError(f"a probe this product does not have: {settings['name']}")
    before = classification(model, test_images)
    batches = {"image": case.inputs["images"], "label": case.inputs["labels"]}
    out = run_training(method, batches, 1, Progress(epoch=settings["epoch"]), no_state)
    after = classification(model, test_images)
    return out | {"json/missing_keys": same(sorted(report.missing), sorted(spec["missing_keys_at_load"])),
                  "json/unexpected_keys": same(sorted(report.unexpected), sorted(spec["unexpected_keys_at_load"])),
                  "out/features": before["out/features"], "out/logits_before": before["out/logits"], "out/logits_after": after["out/logits"]}


def full_size(case: Case) -> dict:
    from paddle import LazyGuard

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
    loop = case.spec["loop"]
    understood(loop, "mask_num", "feature_weight", "weight_mask")
    method = pretraining(model, loop | {"epochs": 1})                                          # one epoch: no ramp
    order = np.atleast_2d(case.inputs["idx_shuffle"])
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


KINDS = {"pretrain_forward": pretrain_forward, "pretrain_train": pretrain_train, "pretrain_checkpoint": pretrain_checkpoint,
         "resume_checkpoint": resume_checkpoint, "masking": masking, "schedules": schedules, "finetune_forward": finetune_forward,
         "finetune_load": finetune_load, "finetune_train": finetune_train, "linprobe": linprobe, "full_size": full_size}
