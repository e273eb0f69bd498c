"""The PyTorch reference forwards reproduce the authors' numbers, so that `verify` compares with the right thing."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convert.formats import load
from convert.reference import bootmae, byol, convvit, mae, tec, vit
from convert.reference.tape import Tape
from tests.convert.networks import GOLDEN
from tests.golden.case import Case, find_cases
from tests.golden.runner import compare

FORWARDS = {"mae": mae.forward, "convmae": convvit.convmae, "fastconvmae": convvit.fastconvmae}
CLASSIFIERS = {"mae": vit.forward, "tec": vit.forward, "bootmae": bootmae.classifier, "convmae": convvit.classifier}


def tape(state: dict) -> Tape:
    return Tape({key: torch.from_numpy(np.array(value)) for key, value in state.items()})


def file(case: Case, name: str = "checkpoint.pth"):
    return load(case.file(name)).tree


def inputs(case: Case) -> dict:
    return {name: torch.from_numpy(value) for name, value in case.inputs.items()}


def facts(kwargs: dict) -> dict:
    return {"heads": kwargs["num_heads"], "eps": kwargs.get("norm_layer_eps", 1e-6)}


def decoder_facts(kwargs: dict) -> dict:
    return facts(kwargs) | {"decoder_heads": kwargs["decoder_num_heads"]}


def reconstruction(case: Case) -> dict:
    kwargs, given = case.spec["model"]["kwargs"], inputs(case)
    return FORWARDS[case.spec["family"]](tape(file(case)["model"]), given["imgs"], given["noise"], mask_ratio=case.spec["mask_ratio"],
                                         norm_pix_loss=kwargs["norm_pix_loss"], **decoder_facts(kwargs))


def easycv_reconstruction(case: Case) -> dict:
    model, given = case.spec["model"], inputs(case)
    state = {key.split(".", 1)[1]: value for key, value in file(case)["state_dict"].items()}
    return convvit.fastconvmae(tape(state), given["imgs"], given["noise"], mask_ratio=case.spec["mask_ratio"],
                               norm_pix_loss=model["norm_pix_loss"], **decoder_facts(model["backbone"] | model["neck"]))


def classification(case: Case) -> dict:
    kwargs, given = case.spec.get("kwargs") or case.spec["model"]["kwargs"], inputs(case)
    images = given["imgs"] if "imgs" in given else given["images"]
    return CLASSIFIERS[case.spec["family"]](tape(file(case)["model"]), images, **facts(kwargs))


def easycv_classification(case: Case) -> dict:
    state = {key.removeprefix("backbone."): value for key, value in file(case)["state_dict"].items()}
    return convvit.classifier(tape(state), inputs(case)["imgs"], first=1, **facts(case.spec["model"]["kwargs"]))


def boot_pretraining(case: Case) -> dict:
    kwargs, given = case.spec["kwargs"], inputs(case)
    out = bootmae.forward(tape(file(case)["model"]), given["images"], given["idx_shuffle"], masked=int(case.spec["loop"]["mask_num"]),
                          memory_blocks=kwargs["fea_list"], **facts(kwargs))
    target = bootmae.teacher_features(tape(file(case)["model_ema"]), given["images"], **facts(kwargs))
    mask = out["mask"].reshape(given["block_masks"].shape)
    return {"pixel_pred": out["pixels"], "feature_pred": out["features"], "feature_target": target, "loss_mask": mask}


def tec_pretraining(case: Case) -> dict:
    kwargs, given, base = case.spec["kwargs"], inputs(case), file(case, "base_checkpoint.pth")
    state = base.get("model") or base.get("state_dict") or {key[16:]: value for key, value in base["student"].items()}
    target = tec.base(tape(state), given["images"], last_layers=case.spec["last_layers"], top=case.spec["topkatt"],
                      **facts(case.spec["base_kwargs"]))
    out = tec.forward(tape(file(case)["model"]), given["images"], given["noise"], target["index"], mask_ratio=case.spec["mask_ratio"],
                      **decoder_facts(kwargs))
    tau = kwargs.get("att_tau", 1.0)
    return out | tec.losses(target, out, tau) | {
        "base_feature": target["features"], "base_topk_index": target["index"], "base_attention_logits": target["logits"],
        "attention_target": (target["logits"] / tau).softmax(-1), "adaptor_input": out["blocks"], "adaptor_output": out["adapter"]}


def ibot(case: Case) -> dict:
    network, options = tape(file(case)["state_dict"]), facts(case.spec["kwargs"])
    tokens = network.norm("norm", vit.tokens(network, inputs(case)["images"], **options), options["eps"])
    return {"tokens": tokens, "cls": tokens[:, 0]}


def heads_mlp(case: Case) -> dict:
    state, x = file(case), inputs(case)["x"]
    return {"eval": byol.mlp(tape(state), "", x), "train": byol.mlp(tape(state), "", x, training=True)}


def byol_full_size(case: Case) -> dict:
    network, images = tape(case.synthetic_weights()), normalized(case, inputs(case)["images_uint8"])
    first, second = images.chunk(2)
    shown = byol.forward(network, first)
    q = byol.forward(network, torch.cat([first, second]), training=True)["q"]
    return {"eval_pooled": shown["features"], "eval_projection": shown["projection"], "eval_prediction": shown["q"], "train_q": q}


def legacy(case: Case) -> dict:
    network = tape({key.removeprefix("module."): value for key, value in case.synthetic_weights().items()})
    return {"features_image": byol.classify(network, normalized(case, inputs(case)["image_uint8"]))["features"],
            "features_ones": byol.classify(network, torch.ones(1, 3, 224, 224))["features"]}


def normalized(case: Case, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(case.spec["normalize"][name]).reshape(3, 1, 1) for name in ("mean", "std"))
    return (images.float() / 255 - mean) / std


RUNS = {("bootmae", "pretrain_forward"): boot_pretraining, ("tec", "pretrain_forward"): tec_pretraining, ("tec", "ibot_forward"): ibot,
        ("byol", "heads_mlp"): heads_mlp, ("byol", "full_size"): byol_full_size, ("byol", "legacy_load_and_convert"): legacy,
        ("fastconvmae", "easycv_pretrain_forward"): easycv_reconstruction,
        ("fastconvmae", "easycv_finetune_forward"): easycv_classification}
RUNS |= {(family, "pretrain_forward"): reconstruction for family in FORWARDS}
RUNS |= {(family, "finetune_forward"): classification for family in CLASSIFIERS}
SLOW = ("full_size", "legacy_load_and_convert")


def key_of(case: Case) -> tuple[str, str]:
    return case.spec["family"], case.spec["kind"]


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.spec["kind"] in SLOW else [])
                                  for c in find_cases([GOLDEN]) if key_of(c) in RUNS])
def test_the_reference_reproduces_the_authors_forward(case):
    with torch.no_grad():
        out = {f"out/{name}": value.numpy() for name, value in RUNS[key_of(case)](case).items()}
    stored = [name for name in case.arrays if name in out]
    failed = [f"{name} {check.max_rel:.2g}" for name in stored if not (check := compare(case, name, out)).ok]
    assert stored and not failed


def test_every_family_has_a_reference_that_is_held_to_the_authors_numbers():
    covered = {key_of(case) for case in find_cases([GOLDEN])} & RUNS.keys()
    assert {family for family, _ in covered} == {"mae", "convmae", "fastconvmae", "bootmae", "tec", "byol"}


def test_stages_are_recorded_under_the_official_paths_in_the_order_they_run():
    case = Case(GOLDEN / "mae/finetune_forward_global_pool")
    network = tape(file(case)["model"])
    vit.forward(network, inputs(case)["imgs"], heads=3)
    names = list(network.stages)
    assert names[:3] == ["patch_embed.proj", "patch_embed", "blocks.0.norm1"] and names[-2:] == ["fc_norm", "head"]
    assert "blocks.1.mlp.fc2" in names and network.stages["blocks.0"][0].shape == (3, 17, 24)


def test_gradients_flow_through_the_reference():
    case = Case(GOLDEN / "mae/pretrain_forward")
    weights = {key: torch.tensor(np.array(value), requires_grad=True) for key, value in file(case)["model"].items()}
    kwargs, given = case.spec["model"]["kwargs"], inputs(case)
    out = mae.forward(Tape(weights), given["imgs"], given["noise"], mask_ratio=case.spec["mask_ratio"], **decoder_facts(kwargs))
    out["loss"].backward()
    golden = {name.removeprefix("grad/"): value for name, value in case.arrays.items() if name.startswith("grad/")}
    key = "blocks.0.mlp.fc1.weight"
    assert F.mse_loss(weights[key].grad, torch.tensor(golden[key])).sqrt() < 1e-6 * np.abs(golden[key]).max()
