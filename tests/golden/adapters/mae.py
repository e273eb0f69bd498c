"""MAE: pretraining, finetuning, probing, schedules, position tables; and what ConvMAE and FastConvMAE have in common with it."""
import json

import numpy as np
from paddle import LazyGuard

from convert.layout import transposed_keys
from convert.optimizer import adam_from_torch
from ppssl import config
from ppssl.engine.loop import Progress
from ppssl.engine.weights import assign
from ppssl.methods.finetune import Finetune
from ppssl.methods.linprobe import LinearProbe, attach_probe_head
from ppssl.methods.mae import MAE
from ppssl.models import registry
from ppssl.models.convmae import MaskedAutoencoderConvViT
from ppssl.models.convvit import ConvViT
from ppssl.models.fastconvmae import FastConvMAE
from ppssl.models.mae import MaskedAutoencoderViT
from ppssl.models.pos_embed import resize_table, sincos_table
from ppssl.models.vit import VisionTransformer
from ppssl.optim.schedules import scale_lr, warmup_cosine
from tests.golden.adapters.common import gradients, load_official, official_state, run_training, sliced, tensor
from tests.golden.case import Case
from tests.golden.runner import Check, same

CLASSES = {("mae", "MaskedAutoencoderViT"): MaskedAutoencoderViT, ("mae", "VisionTransformer"): VisionTransformer,
           ("convmae", "MaskedAutoencoderConvViT"): MaskedAutoencoderConvViT, ("convmae", "ConvViT"): ConvViT,
           ("fastconvmae", "MaskedAutoencoderViT"): FastConvMAE}
OFFICIAL = {ConvViT: {"global_pool": False}}              # the official classes' defaults where ours differ
IGNORED = {FastConvMAE: {"decoder_depth": 8}}             # what the official class takes whatever it is given
DEFAULT_EPS = 1e-5                                        # the official classes' LayerNorm when no norm layer is given


def build(case: Case):
    """The model of a case from the official class's name and arguments."""
    spec = case.spec["model"]
    kind = CLASSES[case.spec["family"], spec["class"]]
    kwargs = OFFICIAL.get(kind, {}) | spec["kwargs"] | IGNORED.get(kind, {})
    kwargs["eps"] = kwargs.pop("norm_layer_eps", DEFAULT_EPS)
    if kwargs.pop("qkv_bias", True) is not True:
        raise ValueError("no official configuration has qkv_bias off")
    return kind(**kwargs)


def pretrain_forward(case: Case) -> dict:
    model = build(case)
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    return reconstruction(case, model) | gradients(model)


def reconstruction(case: Case, model) -> dict:
    """Loss, latent, prediction and mask of a pretraining model in train mode, its gradients left in the model."""
    model.train()
    images, noise = tensor(case.inputs["imgs"]), tensor(case.inputs["noise"])
    loss, pred, mask = model(images, noise, case.spec["mask_ratio"])
    latent, _, ids_restore = model.forward_encoder(images, noise, case.spec["mask_ratio"])
    loss.backward()
    whole = {"loss": loss, "pred": pred, "latent": latent, "mask": mask, "ids_restore": ids_restore[:len(images)]}
    return sliced(case, {k: v.numpy() for k, v in whole.items()})


def full_size(case: Case) -> dict:
    spec = case.spec
    entry = registered(spec)
    with LazyGuard():
        lazy = entry.build(**spec["factory_kwargs"])
    out = manifest_checks(case, lazy, case.manifest())
    if not case.arrays:
        return out
    model = entry.build(**spec["factory_kwargs"])
    load_official(model, case.synthetic_weights())
    return out | (reconstruction if entry.task == "pretrain" else classification)(case, model)


def registered(spec: dict) -> registry.Entry:
    """The registered model of a case's factory."""
    return next(e for e in registry.entries() if e.name == spec["factory"])


def manifest_checks(case: Case, model, manifest: dict[str, list]) -> dict:
    """Keys in order, shapes, dtypes and parameter counts of a model against the manifest."""
    flipped = transposed_keys(model)
    own = {k: [list(v.shape)[::-1] if k in flipped else list(v.shape), str(v.dtype).rsplit(".", 1)[-1]]
           for k, v in model.state_dict().items()}
    trainable = sum(p.size for p in model.parameters() if p.trainable)
    out = {"json/manifest": same(list(own.items()), list(manifest.items())),
           "json/parameters": same(sum(p.size for p in model.parameters()), case.spec["parameters"])}
    if "trainable_parameters" in case.spec:
        out["json/trainable_parameters"] = same(trainable, case.spec["trainable_parameters"])
    return out


def classification(case: Case, model) -> dict:
    model.eval()
    images = tensor(case.inputs["imgs"])
    features = model.forward_features(images)
    return sliced(case, {"features": features.numpy(), "logits": model.head(features).numpy()})


def pos_embed(case: Case) -> dict:
    out = {}
    for table in case.spec["interpolations"]:
        source = case.arrays[table["in"]]
        if source.shape[1] != table["from"] ** 2 + table["extra_tokens"]:
            raise ValueError(f"{table['in']} does not have the grid the case says")
        out[table["out"]] = resize_table(source, (table["from"],) * 2, (table["to"],) * 2)
    for table in case.spec["sincos"]:
        whole = sincos_table(table["dim"], (table["grid"],) * 2, extra_tokens=int(table["cls_token"]))[0]
        out[table["array"]] = whole[::table["step"][0], ::table["step"][1]]
    return out


def pretrain_train(case: Case) -> dict:
    args = case.spec["args"]
    model = build(case)
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    return run_pretraining(case, model, Progress(), no_state) | lr_rule(case, args["lr"])


def run_pretraining(case: Case, model, progress: Progress, restore) -> dict:
    """The product's method, optimizer and loop over the case's micro-batches."""
    spec, args = case.spec, case.spec["args"]
    keys = ("accum_iter", "mask_ratio", "weight_decay", "lr", "min_lr", "warmup_epochs", "epochs")
    values = {k: args[k] for k in keys} | {"batch_size": spec["batch_size"]}
    method = MAE(config.build("pretrain", MAE, "mae_vit_base_patch16", values), model)
    optimizer = method.build_optimizer()
    check_adamw(spec["optimizer"], optimizer.betas)
    n_epochs = spec.get("n_epochs", args.get("n_epochs"))
    batches = {"image": case.inputs["imgs"], "noise": case.inputs["noise"]}
    return run_training(method, batches, n_epochs, progress, restore) | decay_groups(case, optimizer)


def decay_groups(case: Case, optimizer) -> dict:
    """Which parameters decay, where the case says it."""
    ours = {"decay" if g.weight_decay else "no_decay": [name for name, _ in g.params] for g in optimizer.groups}
    return {"json/param_groups": same(ours, case.spec["param_groups"])} if "param_groups" in case.spec else {}


def resume_checkpoint(case: Case) -> dict:
    spec, model = case.spec, build(case)
    file = official_state(case.file("checkpoint.pth"))
    load_official(model, file["model"])
    if file["epoch"] + 1 != spec["start_epoch"]:
        raise ValueError(f"the file ends epoch {file['epoch']}, the case starts at {spec['start_epoch']}")

    def restore(optimizer) -> None:
        order = [name for g in optimizer.groups for name, _ in g.params]
        if order != spec["optimizer_param_order"]:
            raise ValueError("the optimizer's parameters are not in the official order")
        optimizer.load(*adam_from_torch(file["optimizer"], optimizer, transposed_keys(model)))
    progress = Progress(epoch=spec["start_epoch"])
    return run_pretraining(case, model, progress, restore) | lr_rule(case, spec["args"]["lr"])


def check_adamw(optimizer: dict, betas: tuple) -> None:
    """The optimizer of a case is the product's own, or the case is not understood."""
    if optimizer != {"name": "AdamW", "betas": list(betas), "eps": 1e-8}:
        raise ValueError(f"an optimizer this method does not have: {optimizer}")


def lr_rule(case: Case, lr: float) -> dict:
    """The linear scaling rule on the case's numbers."""
    spec = case.spec
    if not spec["lr_rule"].startswith("lr = blr * batch_size * accum_iter * world_size / 256"):
        raise ValueError(f"unknown rule: {spec['lr_rule']}")
    ours = scale_lr(spec["args"]["blr"], spec["batch_size"], spec["args"]["accum_iter"], spec["world_size"])
    return {"json/lr_rule": Check(abs(ours - lr) <= 1e-12 * lr, abs(ours - lr), abs(ours - lr) / lr, "1e-12 relative")}


def finetune_forward(case: Case) -> dict:
    spec, model = case.spec, build(case)
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    out = classification(case, model)
    values = {"layer_decay": spec["layer_decay"], "weight_decay": spec["weight_decay"], "smoothing": spec["label_smoothing"]}
    method = Finetune(config.build("finetune", Finetune, "vit_base_patch16", values), model)
    if spec["loss"] != "soft_target_cross_entropy":
        raise ValueError(f"unknown loss {spec['loss']}")
    batch = {"image": tensor(case.inputs["imgs"])}
    model.train()
    loss, _ = method.loss(model, batch | {"target": tensor(case.inputs["target"])}, None)
    loss.backward()
    smoothed, _ = method.loss(model, batch | {"label": tensor(case.inputs["labels"])}, None)
    groups = {name: [g.lr_scale, g.weight_decay] for g in method.groups() for name, _ in g.params}
    stored = json.loads(case.file("param_groups.json").read_text())
    return out | gradients(model) | load_report(case, model) | {
        "out/loss": loss.numpy(), "out/label_smoothing_loss": smoothed.numpy(), "json/param_groups": close(groups, stored)}


def close(ours: dict, theirs: dict) -> Check:
    """The same parameters with the same pairs of numbers."""
    worst = max((abs(a - b) for k in theirs for a, b in zip(ours.get(k, (np.inf, np.inf)), theirs[k])), default=np.inf)
    return Check(set(ours) == set(theirs) and worst <= 1e-12, worst, worst, "1e-12")


def load_report(case: Case, classifier) -> dict:
    """What loading a pretraining file of the same dimensions leaves out, against the official report."""
    stated = case.spec["load_from_pretrain"]
    pretrain = pretraining_twin(case, stated["decoder_depth"])
    state = {k: v.numpy() for k, v in pretrain.state_dict().items()}
    report = assign(classifier, state)
    ignored = all(k.startswith(classifier.pretraining_only) for k in report.unexpected)
    fresh = all(k.startswith(classifier.not_pretrained) for k in report.missing)
    return {"json/missing_keys": same(sorted(report.missing), sorted(stated["missing_keys"])),
            "json/unexpected_keys": same(sorted(report.unexpected), sorted(stated["unexpected_keys"])),
            "json/accepted": Check(ignored and fresh and not report.mismatched, 0.0, 0.0, "no refusal")}


def pretraining_twin(case: Case, decoder_depth: int):
    """A pretraining model of the classifier's dimensions."""
    keys = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")
    kwargs = case.spec["model"]["kwargs"]
    kind = {"mae": MaskedAutoencoderViT, "convmae": MaskedAutoencoderConvViT}[case.spec["family"]]
    return kind(**{k: kwargs[k] for k in keys if k in kwargs}, decoder_embed_dim=16, decoder_depth=decoder_depth, decoder_num_heads=2)


def finetune_train(case: Case) -> dict:
    spec, args, model = case.spec, case.spec["args"], build(case)
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    keys = ("accum_iter", "weight_decay", "lr", "min_lr", "warmup_epochs", "epochs", "layer_decay", "clip_grad")
    values = {k: args[k] for k in keys if k in args} | {"batch_size": spec["batch_size"]}
    method = Finetune(config.build("finetune", Finetune, "vit_base_patch16", values), model)
    check_adamw(spec["optimizer"], method.build_optimizer().betas)
    batches = {"image": case.inputs["imgs"]}
    if spec["loss"] == "soft_target_cross_entropy":
        batches["target"] = case.inputs["target"]
    else:
        raise ValueError(f"unknown loss {spec['loss']}")
    return run_training(method, batches, args["n_epochs"], Progress(), no_state) | lr_rule(case, args["lr"])


def linprobe_train(case: Case) -> dict:
    spec, args, model = case.spec, case.spec["args"], build(case)
    attach_probe_head(model)
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    keys = ("accum_iter", "weight_decay", "lr", "min_lr", "warmup_epochs", "epochs")
    values = {k: args[k] for k in keys} | {"batch_size": spec["batch_size"]}
    method = LinearProbe(config.build("linprobe", LinearProbe, "vit_base_patch16", values), model)
    optimizer = method.build_optimizer()
    same_rule = {"name": "LARS", "momentum": optimizer.momentum, "trust_coefficient": optimizer.trust}
    if spec["optimizer"] != same_rule or spec["loss"] != "cross_entropy":
        raise ValueError(f"a probe this product does not have: {spec['optimizer']}, {spec['loss']}")
    batches = {"image": case.inputs["imgs"], "label": case.inputs["labels"]}
    out = run_training(method, batches, args["n_epochs"], Progress(), no_state) | lr_rule(case, args["lr"])
    model.eval()
    return out | {"out/eval_logits": model(tensor(case.inputs["imgs"][0])).numpy()}


def no_state(optimizer) -> None:
    """Training starts with an empty optimizer."""


def schedules(case: Case) -> dict:
    out = {}
    for i, args in enumerate(case.spec["args"]):
        lr = np.array([warmup_cosine(e, args["lr"], args["min_lr"], args["warmup_epochs"], args["epochs"])
                       for e in case.arrays[f"in/epoch{i}"]])
        out[f"out/lr{i}"] = np.stack([lr, lr, lr * case.spec["lr_scale"]], axis=1)
    return out


KINDS = {"pretrain_train": pretrain_train, "resume_checkpoint": resume_checkpoint, "finetune_forward": finetune_forward, "finetune_train": finetune_train,
         "linprobe_train": linprobe_train, "schedules": schedules, "pretrain_forward": pretrain_forward, "full_size": full_size, "pos_embed": pos_embed}
