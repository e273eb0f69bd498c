"""`ppssl.load_backbone`: the authors' features from their files, and the same features whatever a file was converted to."""
import json
import warnings

import numpy as np
import paddle
import pytest

import ppssl
from convert.contents import read
from convert.conversion import to_paddle, write_paddle
from convert.formats import Refused, save_checkpoint, save_torch
from ppssl.errors import BadRequest
from tests.convert.networks import ENTRIES, GOLDEN, random_weights, shapes_of
from tests.golden.case import Case

TINY = [e for e in ENTRIES if "tiny" in e.name]
PUBLISHED = {                                             # file: (its stored result, options that no file tells)
    "mae/finetune_forward_global_pool/checkpoint.pth": ("out/features", {}),
    "mae/finetune_forward_cls_token/checkpoint.pth": ("out/features", {}),
    "convmae/finetune_forward_global_pool/checkpoint.pth": ("out/features", {}),
    "convmae/finetune_forward_first_token/checkpoint.pth": ("out/features", {}),
    "fastconvmae/easycv_finetune_forward/checkpoint.pth": ("out/features", {}),
    "bootmae/finetune_forward/checkpoint.pth": ("out/features", {}),
    "bootmae/finetune_forward_cls/checkpoint.pth": ("out/features", {}),
    "tec/finetune_forward/checkpoint.pth": ("out/features", {}),
    "tec/finetune_forward_cls/checkpoint.pth": ("out/features", {}),
    "tec/weight_convert/checkpoint.pth": ("out/features", {}),
    "tec/weight_convert/converted.pth": ("out/features", {}),
    "tec/ibot_forward/checkpoint.pth": ("out/cls", {"global_pool": False}),
}


def stored(case: Case) -> dict:
    """The constructor's arguments of the case's model."""
    return case.spec["kwargs"] if "kwargs" in case.spec else case.spec["model"]["kwargs"]


def golden_images(case: Case):
    return paddle.to_tensor(case.inputs.get("imgs", case.inputs.get("images")))


def weights_of(entry) -> dict[str, np.ndarray]:
    """Random weights a network can run on."""
    weights = {k: np.asarray(0.1 * v) for k, v in random_weights(shapes_of(entry)).items()}
    weights = {k: np.asarray(abs(v) + 0.5) if k.endswith("running_var") else v for k, v in weights.items()}
    return {k: v.astype(np.int64) if k.endswith("num_batches_tracked") else v for k, v in weights.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_files_give_the_authors_features(name):
    result, options = PUBLISHED[name]
    case = Case((GOLDEN / name).parent)
    backbone = ppssl.load_backbone(GOLDEN / name, num_heads=stored(case)["num_heads"], **options)
    features = backbone.forward_features(golden_images(case)).numpy()
    assert not backbone.training and np.abs(features - case.arrays[result]).max() < 2e-6 * max(1, np.abs(features).max())


@pytest.mark.parametrize("entry", TINY, ids=lambda e: f"{e.task}-{e.name}")
def test_every_family_and_format_gives_one_and_the_same_layer(entry, tmp_path):
    save_torch(tmp_path / "x.pth", {"model": weights_of(entry)})
    official = ppssl.load_backbone(tmp_path / "x.pth")
    images = paddle.randn([2, 3, 32, 32])
    features, width = official.forward_features(images), 128
    assert features.shape == [2, width] and not np.isnan(features.numpy()).any()
    assert official(images).shape == [2, 10 if entry.task == "classifier" else width]
    for suffix in (".pdparams", ".safetensors"):
        write_paddle(tmp_path / f"x{suffix}", to_paddle(read(tmp_path / "x.pth")), True, lambda _: None)
        again = ppssl.load_backbone(tmp_path / f"x{suffix}").forward_features(images)
        assert np.array_equal(features.numpy(), again.numpy())


def entry_of(name: str):
    return next(e for e in TINY if e.name == name)


def save_model(path, layer, **config) -> None:
    """An own checkpoint of a model alone."""
    save_checkpoint(path, {f"model.{name}": t.numpy() for name, t in layer.state_dict().items()}, {"config": json.dumps(config)})


@pytest.mark.parametrize("name, options, expected", [
    ("byol_resnet_tiny", {}, lambda m, x: m.features(x)),
    ("convmae_convvit_tiny_patch4", {}, lambda m, x: m.features(x)),
    ("mae_vit_tiny_patch4", {"global_pool": False}, lambda m, x: m.forward_encoder(x, paddle.rand([2, 64]), 0.0)[0][:, 0]),
    ("bootmae_tiny_patch4", {"global_pool": False}, lambda m, x: m.forward_encoder(x, paddle.arange(64).expand([2, -1]), 0)[0][:, 0]),
])
def test_a_pretraining_checkpoint_gives_what_its_own_encoder_gives(name, options, expected, tmp_path):
    model = next(e for e in TINY if (e.task, e.name) == ("pretrain", name)).build()
    model.eval()
    images = paddle.randn([2, 3, 32, 32])
    save_model(tmp_path / "x.safetensors", model, model=name)
    features = ppssl.load_backbone(tmp_path / "x.safetensors", **options).forward_features(images)
    assert np.abs(features.numpy() - expected(model, images).numpy()).max() < 1e-5


def test_of_a_run_folder_the_newest_checkpoint_and_any_of_its_networks_can_be_taken(tmp_path):
    entry, images = entry_of("mae_vit_tiny_patch4"), paddle.randn([1, 3, 16, 64])
    online, average = (entry.build(img_size=(16, 64)) for _ in range(2))
    tensors = {f"{s}.{k}": t.numpy() for s, m in (("model", online), ("ema", average)) for k, t in m.state_dict().items()}
    config = {"config": json.dumps({"model": entry.name, "input_size": [16, 64]})}
    save_checkpoint(tmp_path / "checkpoint-epoch0001-step00000001.safetensors", tensors, config)
    features = [ppssl.load_backbone(tmp_path, section=s).forward_features(images).numpy() for s in ("", "model_ema")]
    assert not np.allclose(*features, atol=1e-3)
    with pytest.raises(BadRequest, match="no weights under teacher; it has model, ema"):
        ppssl.load_backbone(tmp_path, section="teacher")


def test_another_image_size_resizes_the_positions_and_other_options_reach_the_model(tmp_path):
    save_model(tmp_path / "x.safetensors", entry_of("vit_tiny_patch4").build(), model="vit_tiny_patch4")
    backbone = ppssl.load_backbone(tmp_path / "x.safetensors", img_size=(16, 48), num_classes=3, drop_path_rate=0.1)
    assert backbone(paddle.randn([2, 3, 16, 48])).shape == [2, 3] and round(backbone.blocks[-1].drop_path, 6) == 0.1


def test_images_of_bootmae_are_normalised_by_a_half(tmp_path):
    for given, mean in ((False, 0.5), (True, 0.485)):
        path = tmp_path / f"{given}.safetensors"
        save_model(path, entry_of("bootmae_tiny_patch4").build(), model="bootmae_tiny_patch4", imagenet_default_mean_and_std=given)
        assert ppssl.load_backbone(path).mean[0] == mean


def test_what_cannot_be_a_backbone_is_refused_with_the_reason(tmp_path):
    with pytest.raises(BadRequest, match="encoder"):
        ppssl.load_backbone(GOLDEN / "byol/heads_mlp/checkpoint.pth")
    save_torch(tmp_path / "other.pth", {"model": {"a.weight": np.zeros((2, 3), np.float32)}})
    with pytest.raises(Refused, match="no known family"):
        ppssl.load_backbone(tmp_path / "other.pth")
    with pytest.raises(BadRequest, match="holds no checkpoint"):
        ppssl.load_backbone(tmp_path)
    entry = entry_of("mae_vit_tiny_patch4")
    save_torch(tmp_path / "wide.pth", {"model": random_weights(shapes_of(entry, img_size=(16, 48)))})
    with pytest.raises(BadRequest, match="img_size"):
        ppssl.load_backbone(tmp_path / "wide.pth")
    assert ppssl.load_backbone(tmp_path / "wide.pth", img_size=(16, 48)).grid == (4, 12)
    with pytest.raises(TypeError, match="img_sise"):
        ppssl.load_backbone(tmp_path / "wide.pth", img_size=(16, 48), img_sise=32)


def test_heads_that_no_file_tells_are_warned_about():
    path = GOLDEN / "mae/pretrain_forward/checkpoint.pth"
    with pytest.warns(UserWarning, match="num_heads"):
        ppssl.load_backbone(path)
    with warnings.catch_warnings(action="error"):
        assert ppssl.load_backbone(path, num_heads=3).blocks[0].attn.num_heads == 3
