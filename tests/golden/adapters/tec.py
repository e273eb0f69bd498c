"""TEC, its base models and its classifier: pretraining, finetuning, loading, folding, iBOT."""
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import LazyGuard, nn

from convert.formats import save_torch
from convert.layout import relayout, transposed_keys
from convert.optimizer import adam_from_torch
from ppssl import config
from ppssl.engine.loop import Progress
from ppssl.engine.weights import assign
from ppssl.methods.classify import fit_position_table, load_encoder
from ppssl.methods.finetune import Finetune
from ppssl.methods.tec import TEC
from ppssl.methods.tec_base import NAMED, load_base, read_base, twin
from ppssl.models import registry
from ppssl.models.tec import TECViT, attention_target, fold_token_mlp, normalize_channels
from ppssl.models.tec_base import BaseModel, attention_logits
from ppssl.models.vit import TECVisionTransformer
from ppssl.optim.schedules import scale_lr
from tests.golden.adapters.common import gradients, load_official, official_state, run_training, tensor
from tests.golden.adapters.mae import check_adamw, no_state
from tests.golden.case import Case, synthetic_tensor
from tests.golden.runner import Check, same

OFFICIAL_HEAD = ("head.weight", "head.bias")              # the authors' base network owns one and never runs it
SCHEDULE = ("lr", "min_lr", "warmup_epochs", "epochs", "weight_decay", "accum_iter")
LOOP = {*SCHEDULE, "blr", "start_epoch", "n_epochs", "iters_per_epoch", "clip_grad"}


def arguments(kwargs: dict) -> dict:
    """The product's arguments for an official class's ones."""
    kwargs = dict(kwargs)
    kwargs["eps"] = kwargs.pop("norm_layer_eps", 1e-5)
    if kwargs.pop("qkv_bias", True) is not True or kwargs.pop("num_tokens", 1) != 1:
        raise ValueError("no official configuration has qkv_bias off or more than one cls token")
    return kwargs


def new_model(case: Case) -> TECViT:
    model = TECViT(**arguments(case.spec["kwargs"]))
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    return model


def base_model(case: Case) -> BaseModel:
    """The base model of a case, read from its file as the product reads any."""
    kwargs = arguments(case.spec["base_kwargs"])
    if kwargs.pop("num_classes", 0) != 0 or case.spec["base_kind"] not in ("mae", "ibot", "ibot_full"):
        raise ValueError(f"unknown base model: {case.spec['base_kind']}, {case.spec['base_kwargs']}")
    base = BaseModel(**kwargs)
    load_base(base, case.file("base_checkpoint.pth"))
    return base


def classifier(kwargs: dict) -> TECVisionTransformer:
    return TECVisionTransformer(**{"mlp_token": True, "global_pool": False} | arguments(kwargs))


def pretraining(case: Case, model, base, **train) -> TEC:
    """The product's method with a case's settings."""
    spec = case.spec
    values = {k: spec[k] for k in ("mask_ratio", "last_layers", "topkatt") if k in spec} | train
    values["pred_att"] = model.forward_att_decoder is not None
    return TEC(config.build("pretrain", TEC, "tec_vit_base_patch16", values), model, base=base)


def predictions(method: TEC, images, noise) -> dict:
    """Everything between the images and the losses, by the cases' names; the official layer axis is put back."""
    model, o = method.model, method.options
    target = method.base.targets(images, o.last_layers, o.topkatt if o.pred_att else None)
    levels, mask, ids_restore = model.forward_encoder(images, noise, o.mask_ratio)
    latent, shared = model.encoder_adaptor(levels), (model.decoder_pos_embed, model.decoder_blocks)
    out = {"base_feature": target.features, "feature_target": normalize_channels(target.features),
           "adaptor_input": levels, "adaptor_output": latent, "mask": mask, "ids_restore": ids_restore,
           "feature_pred": model.forward_fea_decoder(latent, ids_restore, *shared)}
    if o.pred_att:
        layered = {"base_attention_logits": target.logits, "base_topk_index": target.top,
                   "attention_target": attention_target(target.logits, model.att_tau),
                   "attention_pred": model.forward_att_decoder(latent, ids_restore, target.top, *shared)}
        out |= {name: value.unsqueeze(1) for name, value in layered.items()}
    return {f"out/{name}": value.numpy() for name, value in out.items()}


def pretrain_forward(case: Case) -> dict:
    model = new_model(case)
    method = pretraining(case, model, base_model(case))
    method.train_mode()
    images, noise = tensor(case.inputs["images"]), tensor(case.inputs["noise"])
    loss, stats = method.loss(model, {"image": images, "noise": noise}, None)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.trainable and p.grad is None]
    return gradients(model) | predictions(method, images, noise) | {
        f"out/{name}": value.numpy() for name, value in stats.items()} | {
        "json/trainable_without_gradient": same(without, case.spec["trainable_without_gradient"])}


def pretrain_train(case: Case) -> dict:
    return run_pretraining(case, new_model(case), no_state)


def resume_checkpoint(case: Case) -> dict:
    spec, model, file = case.spec, new_model(case), official_state(case.file("checkpoint.pth"))

    def restore(optimizer) -> None:
        optimizer.load(*adam_from_torch(file["optimizer"], optimizer, transposed_keys(model)))
    order = [name for g in pretraining(case, model, base_model(case)).build_optimizer().groups for name, _ in g.params]
    return run_pretraining(case, model, restore) | {
        "json/optimizer_param_order": same(order, spec["optimizer_param_order"]),
        "json/top_level_keys": same(list(file), spec["top_level_keys"]),
        "json/scaler": same(dict(file["scaler"]), spec["scaler"]),
        "json/epoch": same((file["epoch"], file["epoch"] + 1), (spec["epoch"], spec["loop"]["start_epoch"]))}


def run_pretraining(case: Case, model, restore) -> dict:
    """The product's method, optimizer and loop over the case's micro-batches."""
    spec, loop = case.spec, loop_of(case)
    method = pretraining(case, model, base_model(case), **training_values(loop))
    check_adamw(spec["optimizer"], method.build_optimizer().betas)
    batches = {"image": case.inputs["images"], "noise": case.inputs["noise"]}
    return trained(case, method, batches, restore) | lr_rule(case)


def loop_of(case: Case) -> dict:
    """A case's loop settings, all of which have to be known."""
    loop, given = case.spec["loop"], len(case.inputs["images"])
    if set(loop) - LOOP or loop["n_epochs"] * loop["iters_per_epoch"] != given:
        raise ValueError(f"a loop this runner does not understand: {loop} over {given} micro-batches")
    return loop


def training_values(loop: dict) -> dict:
    """The product's keys among a case's loop settings."""
    return {k: loop[k] for k in (*SCHEDULE, "clip_grad") if k in loop}


def trained(case: Case, method, batches: dict, restore) -> dict:
    """run_training, and trace/lr as the official loop lists it: the rate in force at each forward pass."""
    loop, rates, ask = case.spec["loop"], {}, method.rates

    def listen(clock):
        rates[clock.epoch, clock.batch] = ask(clock)[0]
        return ask(clock)
    method.rates = listen
    start = loop.get("start_epoch", 0)
    out = run_training(method, batches, loop["n_epochs"], Progress(epoch=start), restore)
    passes = [(e, i) for e in range(start, start + loop["n_epochs"]) for i in range(loop["iters_per_epoch"])]
    return out | {"trace/lr": np.array([rates[e, i - i % loop["accum_iter"]] for e, i in passes])}


def lr_rule(case: Case) -> dict:
    """The linear scaling rule on the case's numbers, where it states them."""
    spec, loop = case.spec, case.spec["loop"]
    if "lr_rule" not in spec:
        return {}
    if not spec["lr_rule"].startswith("loop.lr = blr * batch_size * accum_iter * world_size / 256"):
        raise ValueError(f"unknown rule: {spec['lr_rule']}")
    blr = loop["blr"] if "blr" in loop else spec["blr"]
    ours = scale_lr(blr, spec["batch_size"], loop["accum_iter"], spec["world_size"])
    off = abs(ours - loop["lr"])
    return {"json/lr_rule": Check(off <= 1e-12 * loop["lr"], off, off / loop["lr"], "1e-12 relative")}


def finetuning(case: Case, model, **train) -> Finetune:
    values = {"layer_decay": case.spec["layer_decay"]} | train
    return Finetune(config.build("finetune", Finetune, "tec_vit_base_patch16", values), model)


def param_groups(case: Case, method: Finetune) -> Check:
    """The same trainable parameters in the same order, each with the same learning-rate scale and weight decay."""
    ours = {name: (g.lr_scale, g.weight_decay) for g in method.groups() for name, _ in g.params}
    theirs = case.spec["param_groups"]
    worst = max((abs(a - b) for k in theirs for a, b in zip(ours.get(k, (np.inf, np.inf)), theirs[k])), default=np.inf)
    return Check(list(ours) == list(theirs) and worst <= 1e-12, worst, worst, "1e-12, same order")


def finetune_forward(case: Case) -> dict:
    model = classifier(case.spec["kwargs"])
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    method = finetuning(case, model, weight_decay=case.spec["weight_decay"])
    images = tensor(case.inputs["images"])
    model.eval()
    features = model.forward_features(images)
    out = {"out/features": features.numpy(), "out/logits": model.head(features).numpy()}
    model.train()
    loss, _ = method.loss(model, {"image": images, "target": tensor(case.inputs["soft_targets"])}, None)
    loss.backward()
    return out | gradients(model) | {"out/loss": loss.numpy(), "json/param_groups": param_groups(case, method)}


def finetune_train(case: Case) -> dict:
    spec, loop, model = case.spec, loop_of(case), classifier(case.spec["kwargs"])
    load_official(model, official_state(case.file("checkpoint.pth"))["model"])
    if spec["loss"] != "soft_target_cross_entropy":
        raise ValueError(f"unknown loss {spec['loss']}")
    method = finetuning(case, model, **training_values(loop))
    check_adamw(spec["optimizer"], method.build_optimizer().betas)
    batches = {"image": case.inputs["images"], "target": case.inputs["soft_targets"]}
    return trained(case, method, batches, no_state) | lr_rule(case) | {"json/param_groups": param_groups(case, method)}


def finetune_load(case: Case) -> dict:
    spec, path, model = case.spec, case.file("checkpoint.pth"), classifier(case.spec["finetune_kwargs"])
    with LazyGuard():
        pretrained = TECViT(**arguments(spec["pretrain_kwargs"]))
    kept = {k.removeprefix("kept/"): v for k, v in case.inputs.items() if k.startswith("kept/")}
    assign(model, relayout(kept, transposed_keys(model)))
    shapes = {k: np.zeros(p.shape, np.float32) for k, p in pretrained.state_dict().items()}
    fit_position_table(model, shapes)
    report = assign(model, shapes)
    load_encoder(model, str(path))
    model.eval()
    return {"out/features": model.forward_features(tensor(case.inputs["images"])).numpy(),
            "json/file_keys": same(list(pretrained.state_dict()), list(official_state(path)["model"])),
            "json/loaded": same(sorted(report.loaded), sorted(spec["loaded"])),
            "json/kept_own_init": same(sorted(report.missing), sorted(spec["kept_own_init"])),
            "json/unused_from_checkpoint": same(sorted(report.unexpected), sorted(spec["unused_from_checkpoint"]))}


def weight_convert(case: Case) -> dict:
    spec, state = case.spec, official_state(case.file("checkpoint.pth"))["model"]
    folded, theirs = fold_token_mlp(state), official_state(case.file("converted.pth"))
    kwargs = arguments(spec["plain_vit_kwargs"])
    plain = TECVisionTransformer(**kwargs)
    report = assign(plain, relayout(folded, transposed_keys(plain)))
    plain.eval()
    moved = [k for k in theirs if k != "cls_token" and not np.array_equal(folded.get(k), theirs[k])]
    features = plain.forward_features(tensor(case.inputs["images"]))
    return {"out/features": features.numpy(), "out/cls_token": folded["cls_token"],
            "json/converted_keys": same([[k, list(v.shape)] for k, v in folded.items()],
                                        [[k, shape] for k, shape in spec["converted_keys"].items()]),
            "json/converted_values": same(moved, []),
            "json/dropped_keys": same(sorted(set(state) - set(folded)), sorted(spec["dropped_keys"])),
            "json/plain_vit_missing_keys": same(list(report.missing), spec["plain_vit_missing_keys"]),
            "json/plain_vit_unexpected_keys": same([*report.unexpected, *report.mismatched], [])}


def ibot_forward(case: Case) -> dict:
    base = BaseModel(**arguments(case.spec["kwargs"]))
    load_base(base, case.file("checkpoint.pth"))
    images = tensor(case.inputs["images"])
    inputs = [base.embed(images)]
    for block in base.blocks:
        inputs.append(block(inputs[-1]))
    query, key, _ = base.blocks[-1].attn.split_heads(base.blocks[-1].norm1(inputs[-2]))
    logits = attention_logits(query, key, query.shape[-1] ** -0.5)                             # [B, 1+N, heads, 1+N]
    return {"out/tokens": base.norm(inputs[-1]).numpy(), "out/cls": base.forward_features(images).numpy(),
            "out/last_attention": F.softmax(logits, axis=-1).transpose([0, 2, 1, 3]).numpy(),
            "out/intermediate/0": base.norm(inputs[-2]).numpy(), "out/intermediate/1": base.norm(inputs[-1]).numpy()}


def full_size(case: Case) -> dict:
    spec = case.spec
    task = "classifier" if spec["model"].startswith("finetune_") else "pretrain"
    name = spec["model"].removeprefix("finetune_").removeprefix("mae_")
    with LazyGuard():
        model = registry.create(task, f"tec_{name}", **spec["model_kwargs"])
    frozen = [k for k, p in model.named_parameters() if not p.trainable]
    trainable = sum(p.size for p in model.parameters() if p.trainable)
    return {"json/manifest": same(official_shapes(model), list(case.manifest().items())),
            "json/parameters": same(sum(p.size for p in model.parameters()), spec["parameters"]),
            "json/trainable_parameters": same(trainable, spec["trainable_parameters"]),
            "json/frozen": same(sorted(frozen), sorted(spec["frozen"]))}


def official_shapes(model) -> list:
    """(key, [shape in PyTorch's layout, dtype]) of every tensor, in order."""
    flipped = transposed_keys(model)
    return [(k, [list(v.shape)[::-1] if k in flipped else list(v.shape), str(v.dtype).rsplit(".", 1)[-1]])
            for k, v in model.state_dict().items()]


def full_base(case: Case) -> dict:
    """A named base model's keys and shapes, and that its file's wrapper is understood (with tensors of one number)."""
    spec, manifest = case.spec, case.manifest()
    named = NAMED[spec["model"]]
    new = next(n for n in ("tec_vit_base_patch16", "tec_vit_large_patch16") if width(n) == named.embed_dim)
    with LazyGuard():
        base = twin(registry.create("pretrain", new), named.depth)
    with TemporaryDirectory() as folder:
        path = Path(folder) / named.file
        save_torch(path, {spec["top_level_key"]: {k: np.zeros([1], dtype) for k, (_, dtype) in manifest.items()}})
        held = list(read_base(path, nn.Layer()))
    own = list(base.state_dict())
    return {"json/manifest": same(official_shapes(base), list(manifest.items())),
            "json/keys_read": same(held, list(manifest)),
            "json/missing_in_file": same([*[k for k in own if k not in held], *OFFICIAL_HEAD], spec["missing_in_file"]),
            "json/not_used_from_file": same([k for k in held if k not in own], spec["not_used_from_file"])}


def width(name: str) -> int:
    with LazyGuard():
        return registry.create("pretrain", name).cls_token.shape[-1]


def full_forward(case: Case) -> dict:
    spec, named = case.spec, NAMED[case.spec["base"]]
    if spec["att_tau"] != spec["model_kwargs"].get("att_tau", spec["att_tau"]):
        raise ValueError("two temperatures")
    model = registry.create("pretrain", "tec_" + spec["model"].removeprefix("mae_"), **spec["model_kwargs"])
    fill(model, spec["weights_seed"])
    base = twin(model, named.depth)
    fill(base, spec["base_weights_seed"])
    method = pretraining(case, model, base)
    image, noise = tensor(case.inputs["image"]), tensor(case.inputs["noise"])
    with paddle.no_grad():
        _, losses = method.loss(model, {"image": image, "noise": noise}, None)
        whole = predictions(method, image, noise)
    return {f"out/{k}": v.numpy() for k, v in losses.items()} | whole | {
        k: v for name, value in whole.items() for k, v in excerpt(name, value).items()}


def fill(model, seed: int) -> None:
    """The synthetic weights of a seed for every tensor of a model."""
    load_official(model, {k: synthetic_tensor(k, shape, dtype, seed) for k, (shape, dtype) in official_shapes(model)})


def excerpt(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """64 evenly spaced elements, where they stand, and mean, standard deviation, mean and largest magnitude."""
    flat = value.reshape(-1)
    index, wide = np.linspace(0, flat.size - 1, 64).astype(np.int64), flat.astype(np.float64)
    stats = np.array([wide.mean(), wide.std(), np.abs(wide).mean(), np.abs(wide).max()])
    return {f"{name}/strided": flat[index], f"{name}/strided_index": index, f"{name}/stats": stats}


KINDS = {"pretrain_forward": pretrain_forward, "pretrain_train": pretrain_train, "resume_checkpoint": resume_checkpoint,
         "finetune_forward": finetune_forward, "finetune_train": finetune_train, "finetune_load": finetune_load,
         "weight_convert": weight_convert, "ibot_forward": ibot_forward, "full_size": full_size, "full_base": full_base,
         "full_forward": full_forward}
