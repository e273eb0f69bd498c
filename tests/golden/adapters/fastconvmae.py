"""FastConvMAE: Alpha-VL's cases are of the same kinds as MAE's; EasyCV's have its layout and arguments."""
from math import prod

from paddle import LazyGuard

from convert.families import NAMINGS
from ppssl.models.convvit import ConvViT
from ppssl.models.fastconvmae import FastConvMAE
from tests.golden.adapters import mae
from tests.golden.adapters.common import gradients, load_official, official_state, tensor
from tests.golden.case import Case
from tests.golden.runner import same

ARGUMENTS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
BACKBONE = {*ARGUMENTS, "type", "in_channels", "drop_path_rate", "init_pos_embed_by_sincos", "with_fuse", "global_pool"}
NECK = {"type", "embed_dim", "decoder_embed_dim", "decoder_depth", "decoder_num_heads", "patch_size", "in_channels",
        "mlp_ratio"}


def understood(config: dict, kind: str, known: set) -> None:
    if config["type"] != kind or set(config) - known:
        raise ValueError(f"a model this runner does not understand: {config}")


def encoder_arguments(backbone: dict) -> dict:
    """The product's arguments for EasyCV's FastConvMAEViT."""
    understood(backbone, "FastConvMAEViT", BACKBONE)
    return {k: backbone[k] for k in ARGUMENTS if k in backbone} | {"in_chans": backbone.get("in_channels", 3)}


def pretraining_model(spec: dict) -> FastConvMAE:
    """The product's model for EasyCV's MAE of a backbone and a neck, which trains here without drop path only."""
    backbone, neck = spec["backbone"], spec["neck"]
    understood(neck, "FastConvMAENeck", NECK)
    whole = {"embed_dim": backbone["embed_dim"][-1], "patch_size": prod(backbone["patch_size"]),
             "in_channels": backbone.get("in_channels", 3)}
    fused = backbone.get("with_fuse", True) and not backbone.get("global_pool", False)
    fits = all(neck[k] == v for k, v in whole.items())
    if spec["class"] != "MAE" or backbone.get("drop_path_rate", 0.1) or not (fused and fits):
        raise ValueError(f"a model this product does not have: {spec}")
    return FastConvMAE(**encoder_arguments(backbone), **{k: neck[k] for k in NECK if k.startswith("decoder_")},
                       decoder_mlp_ratio=neck["mlp_ratio"], norm_pix_loss=spec.get("norm_pix_loss", True))


def classifier(spec: dict) -> ConvViT:
    """The product's encoder for EasyCV's backbone with its global pool; without a head."""
    backbone = spec["kwargs"]
    if spec["class"] != "FastConvMAEViT" or backbone.get("with_fuse", True) or not backbone["global_pool"]:
        raise ValueError(f"a model this product does not have: {spec}")
    rate = backbone.get("drop_path_rate", 0.1)
    return ConvViT(**encoder_arguments(backbone), drop_path_rate=rate, num_classes=0, skip_first=True)


def official_names(keys, title: str) -> dict[str, str]:
    """{EasyCV's name: official name}, as the converter knows it."""
    naming = next(n for n in NAMINGS if n.title == title)
    return {key: naming.official(key) for key in keys}


def load_easycv(case: Case, model, title: str) -> dict[str, str]:
    """Put the case's EasyCV file into a model, every tensor of both sides; returns its names' official ones."""
    state = official_state(case.file("checkpoint.pth"))["state_dict"]
    names = official_names(state, title)
    load_official(model, {names[key]: value for key, value in state.items()})
    return names


def easycv_pretrain_forward(case: Case) -> dict:
    model = pretraining_model(case.spec["model"])
    names = load_easycv(case, model, "EasyCV pretraining names")
    out, ours = mae.reconstruction(case, model), gradients(model)
    return out | {f"grad/{theirs}": ours[f"grad/{name}"] for theirs, name in names.items() if f"grad/{name}" in ours}


def easycv_finetune_forward(case: Case) -> dict:
    model = classifier(case.spec["model"])
    load_easycv(case, model, "EasyCV classifier names")
    model.eval()
    return {"out/features": model.forward_features(tensor(case.inputs["imgs"])).numpy()}


def full_size(case: Case) -> dict:
    """Alpha-VL's as MAE's; EasyCV's manifest holds the same tensors under its own names, in its own order."""
    if case.spec.get("layout") != "easycv":
        return mae.full_size(case)
    if case.arrays:
        raise ValueError("an EasyCV case with arrays: only the manifest is understood")
    theirs = case.manifest()
    renamed = {official: theirs[key] for key, official in official_names(theirs, "EasyCV pretraining names").items()}
    with LazyGuard():
        model = mae.registered(case.spec).build(**case.spec["factory_kwargs"])
    in_order = {key: renamed[key] for key in model.state_dict() if key in renamed}
    return mae.manifest_checks(case, model, in_order) | {"json/names": same(sorted(renamed), sorted(in_order))}


KINDS = mae.KINDS | {
    "full_size": full_size, "easycv_pretrain_forward": easycv_pretrain_forward,
    "easycv_finetune_forward": easycv_finetune_forward}
