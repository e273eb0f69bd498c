"""BootMAE's classifiers: loading, finetuning, probing; and what its pretraining cases share with them."""
from collections.abc import Mapping

import numpy as np

from convert.layout import relayout, transposed_keys
from ppssl import config
from ppssl.engine.loop import Progress
from ppssl.engine.weights import assign
from ppssl.methods.boot_finetune import BootFinetune
from ppssl.methods.boot_linprobe import BootLinearProbe
from ppssl.methods.boot_load import read_encoder
from ppssl.methods.linprobe import attach_probe_head
from ppssl.models.boot_vit import BootVisionTransformer
from ppssl.optim.ema import WeightAverage
from ppssl.optim.schedules import Clock
from tests.golden.adapters.common import (gradients, load_official, official_arrays, official_state, run_training,
                                          tensor)
from tests.golden.adapters.mae import check_adamw, close, no_state
from tests.golden.case import Case
from tests.golden.runner import same

# arguments of the official classes that change nothing, or only how a network starts
WITHOUT_EFFECT = ("init_values", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias", "init_std",
                  "init_scale")
LOOP = ("lr", "min_lr", "weight_decay", "weight_decay_end", "epochs", "warmup_epochs", "warmup_steps", "update_freq",
        "clip_grad", "model_ema", "model_ema_decay")
UNSET = 12345.0


def official_kwargs(kwargs: dict) -> dict:
    """The official class's arguments by our names. Raises ValueError for a setting that is never used."""
    kwargs = {k: v for k, v in kwargs.items() if k not in WITHOUT_EFFECT}
    if kwargs.pop("qkv_bias", False) is not True:
        raise ValueError("no official configuration has qkv_bias off")
    return kwargs | {"eps": kwargs.pop("norm_layer_eps")}


def classifier(kwargs: dict) -> BootVisionTransformer:
    kwargs = official_kwargs(kwargs)
    return BootVisionTransformer(global_pool=kwargs.pop("use_mean_pooling", True), **kwargs)


def understood(settings: Mapping, *known: str) -> None:
    """Raises ValueError for a setting that this adapter does not know."""
    if set(settings) - set(known):
        raise ValueError(f"settings that are not understood: {sorted(set(settings) - set(known))}")


def recorded_rates(method) -> list[tuple[float, float]]:
    """A list that fills with the rates that the method tells the loop."""
    rates, ask = [], method.rates

    def rates_of(clock: Clock):
        rates.append(ask(clock))
        return rates[-1]
    method.rates = rates_of
    return rates


def finals_of(model, average: WeightAverage | None) -> dict:
    networks = {"model": model} | ({"ema": average.network} if average else {})
    return {k: v for name, n in networks.items() for k, v in official_arrays(n, f"final/{name}", lambda t: t).items()}


def finetuning(model, settings: dict) -> BootFinetune:
    values = BootFinetune.defaults | settings
    return BootFinetune(config.build("finetune", BootFinetune, "bootmae_base", values), model)


def targets_of(case: Case) -> tuple[dict[str, np.ndarray], dict]:
    """What the loss compares with, and the settings it needs: soft targets, or labels with or without smoothing."""
    loss = case.spec.get("loss", "soft_target_cross_entropy")
    if loss == "soft_target_cross_entropy":
        return {"target": case.inputs["soft_targets"]}, {}
    smoothing = {"cross_entropy": 0.0, "label_smoothing_cross_entropy": case.spec.get("label_smoothing")}[loss]
    return {"label": case.inputs["labels"]}, {"smoothing": smoothing}


def finetune_forward(case: Case) -> dict:
    spec, model, images = case.spec, classifier(case.spec["kwargs"]), tensor(case.inputs["images"])
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    out, (targets, settings) = classification(model, images), targets_of(case)
    method = finetuning(model, settings | {k: spec[k] for k in ("layer_decay", "backbone_decay", "weight_decay")})
    method.train_mode()
    loss, _ = method.loss(model, {"image": images} | {k: tensor(v) for k, v in targets.items()}, None)
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
    understood(loop, *LOOP, "start_epoch", "n_epochs", "steps_per_epoch")
    targets, settings = targets_of(case)
    settings |= {k: loop[k] for k in LOOP if k in loop} | {k: spec[k] for k in ("layer_decay", "backbone_decay")}
    settings |= {"accum_iter": settings.pop("update_freq"), "batch_size": case.inputs["images"].shape[1]}
    method = finetuning(model, settings)
    check_adamw(spec["optimizer"], method.build_optimizer().betas)
    groups, rates = param_groups(method, spec), recorded_rates(method)
    progress = Progress(epoch=loop["start_epoch"])
    out = run_training(method, {"image": case.inputs["images"]} | targets, loop["n_epochs"], progress, no_state)
    return out | groups | finals_of(model, method.average) | {
        "trace/weight_decay": np.array([decay for _, decay in rates])}


def finetune_load(case: Case) -> dict:
    """The product's loading of the file, seen from outside: which tensors it set, and what of the file they equal."""
    spec, path, model = case.spec, case.file("checkpoint.pth"), classifier(case.spec["finetune_kwargs"])
    for t in model.state_dict().values():
        t.set_value(np.full(t.shape, UNSET, np.float32))
    finetuning(model, {"model_key": spec["model_key"]}).load(str(path))
    tree, flipped = official_state(path), transposed_keys(model)
    taken = next((key for key in spec["model_key"].split("|") if key in tree), None)
    file = tree if taken is None else tree[taken]
    state = relayout({k: v.numpy() for k, v in model.state_dict().items()}, flipped)
    kept = [k for k, v in state.items() if (v == UNSET).all()]
    source = {k: next((held for held, a in file.items() if np.array_equal(a, state[k])), None)
              for k in state.keys() - kept}
    assign(model, relayout({k: case.inputs[f"kept/{k}"] for k in kept}, flipped))
    unused = file.keys() - set(source.values())
    facts = {"loaded": source, "kept_own_init": kept, "unused_from_checkpoint": unused}
    return {f"json/{name}": same(sorted(found), sorted(spec[name])) for name, found in facts.items()} | {
        "json/key_taken": same(taken, spec["key_taken"]), "json/loaded_from": same(source, spec["loaded_from"]),
        "out/features": classification(model, tensor(case.inputs["images"]))["out/features"]}


def linprobe(case: Case) -> dict:
    spec, settings, path = case.spec, case.spec["optimizer"], str(case.file("checkpoint.pth"))
    values = ("lr", "min_lr", "weight_decay", "warmup_epochs", "epochs")
    understood(settings, *values, "epoch", "name", "momentum", "trust_coefficient")
    model = classifier(spec["kwargs"])
    report = assign(model, read_encoder(path, model, "model"))
    settled = config.build("linprobe", BootLinearProbe, "base_patch16_224", {k: settings[k] for k in values})
    method = BootLinearProbe(settled, model)
    method.load(path)
    start = {k.removeprefix("head_init/"): v for k, v in case.inputs.items() if k.startswith("head_init/")}
    assign(model, relayout(start, transposed_keys(model)))
    attach_probe_head(model)
    optimizer, test_images = method.build_optimizer(), tensor(case.inputs["test_images"])
    if (optimizer.momentum, optimizer.trust) != (settings["momentum"], settings["trust_coefficient"]):
        raise ValueError(f"a probe this product does not have: {settings['name']}")
    before = classification(model, test_images)
    batches = {"image": case.inputs["images"], "label": case.inputs["labels"]}
    out = run_training(method, batches, 1, Progress(epoch=settings["epoch"]), no_state)
    after = classification(model, test_images)
    return out | {"json/missing_keys": same(sorted(report.missing), sorted(spec["missing_keys_at_load"])),
                  "json/unexpected_keys": same(sorted(report.unexpected), sorted(spec["unexpected_keys_at_load"])),
                  "out/features": before["out/features"], "out/logits_before": before["out/logits"],
                  "out/logits_after": after["out/logits"]}


KINDS = {"finetune_forward": finetune_forward, "finetune_load": finetune_load, "finetune_train": finetune_train,
         "linprobe": linprobe}
