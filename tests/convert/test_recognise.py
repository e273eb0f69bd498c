"""Networks are told from the names and shapes of their tensors."""
import json

import numpy as np
import pytest

from convert.contents import read
from convert.formats import Refused, save_torch
from convert.recognise import recognise
from tests.convert.networks import ENTRIES, FILES, GOLDEN, name_of, opened, random_weights, shapes_of, weightless

TINY = next(e for e in ENTRIES if e.name == "mae_vit_tiny_patch4")
CLASSIFIER = next(e for e in ENTRIES if e.name == "vit_tiny_patch4")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.task}-{e.name}")
def test_every_registered_model_is_recognised_in_both_layouts(entry):
    shapes = shapes_of(entry)
    network = recognise(shapes, hint=entry.name)
    assert (network.family.task, network.distance, network.absent) == (entry.task, 0, ()) and not network.paddle
    twin = entry.build.__name__.removesuffix("_easycv")                      # the same tensors, another pooling
    assert network.entry == twin and list(network.official) == list(shapes)
    flipped = {key: shape[::-1] if key in network.linear else shape for key, shape in shapes.items()}
    assert recognise(flipped, hint=entry.name).paddle


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_golden_file_is_recognised_whole(path):
    network = read(path).main.network
    assert network.distance == 0 and not network.paddle and network.linear


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("manifest*.json")), ids=name_of)
def test_every_full_size_manifest_is_a_registered_model(path):
    shapes = {key: tuple(shape) for key, (shape, _) in json.loads(path.read_text()).items()}
    network = opened({"model": weightless(shapes)}).main.network
    assert network.entry and network.distance == 0


@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s}, lambda s: {"student": s}, lambda s: {"module": s},
    lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}, lambda s: {"epoch": 3, "model": s, "optimizer": {}},
    lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()}},
    lambda s: {"state_dict": {("decoder." if k.startswith(("decoder", "mask")) else "encoder.") + k: v for k, v in s.items()}},
], ids=["flat", "model", "state_dict", "student", "deepspeed", "distributed", "training", "backbone", "easycv"])
def test_wrappers_and_prefixes_are_looked_through(wrap):
    found = opened(wrap(weightless(shapes_of(TINY))))
    assert found.main.network.entry == "mae_vit_tiny_patch4" and list(found.main.network.official) == list(shapes_of(TINY))


def test_an_encoder_alone_is_recognised_and_its_missing_decoder_named():
    shapes = {k: s for k, s in shapes_of(TINY).items() if not k.startswith(("decoder", "mask_token"))}
    network = recognise(shapes)
    assert network.entry == "mae_vit_tiny_patch4" and network.absent == ("decoder",)


def test_of_two_methods_with_the_same_keys_the_runs_own_options_decide():
    from argparse import Namespace

    entry = next(e for e in ENTRIES if e.name == "fastconvmae_convvit_tiny_patch4")
    weights = weightless(shapes_of(entry))
    assert opened({"model": weights}).main.network.family.name == "convmae"
    assert opened({"model": weights, "args": Namespace(model=entry.name)}).main.network.family.name == "fastconvmae"


def test_square_matrices_alone_do_not_decide_the_layout():
    shapes = {key: (8, 8) if key == "l1.weight" else shape for key, shape in {
        "l1.weight": 0, "l1.bias": (8,), "bn1.weight": (8,), "bn1.bias": (8,), "bn1.running_mean": (8,), "bn1.running_var": (8,),
        "bn1.num_batches_tracked": (), "l2.weight": (8, 8), "l2.bias": (8,)}.items()}
    assert recognise(shapes, paddle_format=True).paddle and not recognise(shapes).paddle


def test_passl_names_of_running_statistics_are_pytorchs():
    state = {k: v for k, v in golden_probe().items() if not k.endswith("num_batches_tracked")}
    passl = {k.replace("running_mean", "_mean").replace("running_var", "_variance"): v.T if v.ndim == 2 else v for k, v in state.items()}
    found = opened({"model": passl}, "paddle")
    assert set(found.main.network.official) == set(state) and found.main.network.paddle


def golden_probe() -> dict:
    return read(GOLDEN / "mae/linprobe_train/checkpoint.pth").main.state


def refusal(shapes: dict, **kwargs) -> str:
    with pytest.raises(Refused) as caught:
        recognise(shapes, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_keys_are_refused():
    assert "no known family" in refusal({"conv.weight": (3, 3), "conv.bias": (3,)})


def test_a_partial_match_names_the_closest_network_and_what_is_missing():
    shapes = shapes_of(TINY)
    del shapes["blocks.1.attn.proj.weight"]
    message = refusal(shapes)
    assert "mae_vit_tiny_patch4" in message and "1 missing (first blocks.1.attn.proj.weight)" in message


def test_half_a_decoder_is_not_an_absent_decoder():
    shapes = shapes_of(TINY)
    del shapes["decoder_pred.bias"]
    assert "decoder_pred.bias" in refusal(shapes)


def test_a_tensor_of_another_shape_is_named():
    shapes = shapes_of(TINY) | {"blocks.2.norm1.bias": (7,)}
    assert "blocks.2.norm1.bias is [7], expected [128]" in refusal(shapes)


def test_a_matrix_that_lies_the_wrong_way_round_is_refused():
    shapes = shapes_of(TINY)
    shapes["blocks.2.mlp.fc1.weight"] = shapes["blocks.2.mlp.fc1.weight"][::-1]
    assert "blocks.2.mlp.fc1.weight" in refusal(shapes)


def test_shapes_of_another_size_than_the_model_asked_for_are_refused():
    assert "mae_vit_base_patch16" in refusal(shapes_of(TINY), model="mae_vit_base_patch16")
    assert recognise(shapes_of(TINY), model="mae_vit_tiny_patch4").entry == "mae_vit_tiny_patch4"


def test_an_unknown_model_is_refused_with_the_nearest():
    assert "did you mean mae_vit_tiny_patch4" in refusal(shapes_of(TINY), model="mae_vit_tiny_patch")


def test_byols_legacy_file_is_matched_by_order_whatever_its_names(tmp_path):
    entry = next(e for e in ENTRIES if e.name == "resnet_tiny")
    shapes = {k: s for k, s in shapes_of(entry).items() if not k.startswith("fc.")}
    renamed = {f"module.t{i}": v for i, v in enumerate(random_weights(shapes).values())} | {"module.z": np.zeros(3, np.float32)}
    save_torch(tmp_path / "legacy.pth.tar", {"online_backbone": renamed})
    network = read(tmp_path / "legacy.pth.tar").main.network
    assert network.entry == "resnet_tiny" and list(network.official) == list(shapes) and network.keys["module.z"] is None


def test_an_image_size_that_is_not_the_registered_one_keeps_the_models_name():
    network = recognise(shapes_of(TINY, img_size=(64, 64)))
    assert network.entry == "mae_vit_tiny_patch4" and network.sizes["img_size"] == (64, 64)


def test_a_classifier_of_any_number_of_classes_keeps_the_models_name():
    network = recognise(shapes_of(CLASSIFIER, num_classes=37))
    assert network.entry == "vit_tiny_patch4" and network.sizes["num_classes"] == 37
