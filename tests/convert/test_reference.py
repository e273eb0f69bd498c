"""The PyTorch reference forwards reproduce the authors' numbers, so that `verify` compares with the right thing."""
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.formats import load
from convert.reference import bootmae, byol, convvit, mae, tec, vit
from convert.reference.tape import Tape
from tests.golden.case import find_cases
from tests.golden.runner import compare

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [c for c in find_cases([GOLDEN]) if c.spec["family"] != "data"]


def tape(state: dict) -> Tape:
    return Tape({key: torch.from_numpy(np.array(value)) for key, value in state.items()})


def inputs(case) -> dict:
    return {name: torch.from_numpy(value) for name, value in case.inputs.items()}


def heads_of(kwargs: dict) -> dict:
    return {"heads": kwargs["num_heads"], "decoder_heads": kwargs["decoder_num_heads"], "eps": kwargs.get("norm_layer_eps", 1e-5)}


def mae_like(case) -> dict:
    forward = {"mae": mae.forward, "convmae": convvit.convmae, "fastconvmae": convvit.fastconvmae}[case.spec["family"]]
    model = case.spec["model"]
    kwargs, state = model.get("kwargs", {}), load(case.file("checkpoint.pth")).tree
    if case.spec["kind"].startswith("easycv"):
        kwargs = model["backbone"] | {f"decoder_{k}": v for k, v in model["neck"].items() if k == "num_heads"} | {
            "decoder_num_heads": model["neck"]["decoder_num_heads"], "norm_layer_eps": 1e-6, "norm_pix_loss": model["norm_pix_loss"]}
        state = {key.split(".", 1)[1]: value for key, value in state["state_dict"].items()}
    else:
        state = state["model"]
    given = inputs(case)
    return forward(tape(state), given["imgs"], given["noise"], mask_ratio=case.spec["mask_ratio"],
                   norm_pix_loss=kwargs["norm_pix_loss"], **heads_of(kwargs))


def classifier(case) -> dict:
    kwargs = case.spec.get("kwargs") or case.spec["model"]["kwargs"]
    options = {"heads": kwargs["num_heads"], "eps": kwargs.get("norm_layer_eps", 1e-6)}
    state = load(case.file("checkpoint.pth")).tree
    state = state["model"] if "model" in state else {
        key.replace("backbone.", "").replace("head.fc_cls", "head"): value for key, value in state["state_dict"].items()}
    forward = {"convmae": convvit.classifier, "fastconvmae": convvit.classifier, "bootmae": bootmae.classifier}.get(
        case.spec["family"], vit.forward)
    if case.spec["kind"].startswith("easycv"):
        options["first"] = 1
    given = inputs(case)
    return forward(tape(state), given["imgs"] if "imgs" in given else given["images"], **options)


def boot_pretraining(case) -> dict:
    kwargs, loop, file, given = case.spec["kwargs"], case.spec["loop"], load(case.file("checkpoint.pth")).tree, inputs(case)
    options = {"heads": kwargs["num_heads"], "eps": kwargs["norm_layer_eps"]}
    out = bootmae.forward(tape(file["model"]), given["images"], given["idx_shuffle"], masked=int(loop["mask_num"]),
                          memory_blocks=kwargs["fea_list"], **options)
    target = bootmae.teacher_features(tape(file["model_ema"]), given["images"], **options)
    return {"pixel_pred": out["pixels"], "feature_pred": out["features"], "feature_target": target}


def tec_pretraining(case) -> dict:
    kwargs, base_kwargs, given = case.spec["kwargs"], case.spec["base_kwargs"], inputs(case)
    file = load(case.file("base_checkpoint.pth")).tree
    state = file.get("model") or file.get("state_dict") or {k[16:]: v for k, v in file["student"].items()}
    target = tec.base(tape(state), given["images"], heads=base_kwargs["num_heads"], eps=base_kwargs["norm_layer_eps"],
                      last_layers=case.spec["last_layers"], top=case.spec["topkatt"])
    out = tec.forward(tape(load(case.file("checkpoint.pth")).tree["model"]), given["images"], given["noise"], target["index"],
                      mask_ratio=case.spec["mask_ratio"], **heads_of(kwargs))
    t = target["features"]
    named = {"base_feature": t, "base_topk_index": target["index"], "base_attention_logits": target["logits"],
             "attention_target": (target["logits"] / kwargs.get("att_tau", 1.0)).softmax(-1), "adaptor_input": out["blocks"],
             "adaptor_output": out["adapter"],
             "feature_target": (t - t.mean(1, keepdim=True)) / (t.var(1, keepdim=True) + 1e-6).sqrt()}
    return out | named | tec.losses(target, out, kwargs.get("att_tau", 1.0))


def ibot(case) -> dict:
    kwargs, given = case.spec["kwargs"], inputs(case)
    network = tape(load(case.file("checkpoint.pth")).tree["state_dict"])
    x = vit.tokens(network, given["images"], heads=kwargs["num_heads"], eps=kwargs["norm_layer_eps"])
    tokens = network.norm("norm", x, kwargs["norm_layer_eps"])
    return {"tokens": tokens, "cls": tokens[:, 0]}


def byol_full(case) -> dict:
    given = inputs(case)
    mean, std = (torch.tensor(case.spec["normalize"][k]).view(3, 1, 1) for k in ("mean", "std"))
    images = (given["images_uint8"].float() / 255 - mean) / std
    return {"eval_features": byol.forward(tape(case.synthetic_weights()), images)["features"]}


KINDS = {"pretrain_forward": {"bootmae": boot_pretraining, "tec": tec_pretraining}, "finetune_forward": {}, "ibot_forward": {},
         "easycv_pretrain_forward": {}, "easycv_finetune_forward": {}}


def runner(case):
    kind, family = case.spec["kind"], case.spec["family"]
    if "finetune_forward" in kind:
        return classifier
    if "pretrain_forward" in kind:
        return KINDS["pretrain_forward"].get(family, mae_like)
    return {"ibot_forward": ibot}.get(kind)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if runner(c)])
def test_the_reference_reproduces_the_authors_forward(case):
    out = {f"out/{name}": value.detach().numpy() for name, value in runner(case)(case).items()}
    stored = [name for name in case.arrays if name in out]
    assert stored
    failed = [f"{name} {check.max_rel:.2g}" for name in stored if not (check := compare(case, name, out)).ok]
    print({name: f"{compare(case, name, out).max_rel:.1e}" for name in stored})
    assert not failed
