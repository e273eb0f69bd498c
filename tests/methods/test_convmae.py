"""Pretraining, finetuning and probing of ConvMAE and FastConvMAE: requests, files, runs."""
import shlex

import numpy as np
import paddle
import pytest

from convert.formats import load, save_torch
from convert.layout import relayout, transposed_keys
from ppssl import cli, config, methods
from ppssl.config import Size
from ppssl.engine import checkpoint
from ppssl.engine.loop import Plan, Progress, train
from ppssl.errors import BadRequest
from ppssl.methods.classify import load_encoder
from ppssl.methods.finetune import Finetune
from ppssl.methods.mae import MAE
from ppssl.models.convmae import MaskedAutoencoderConvViT
from ppssl.models.convvit import ConvViT
from ppssl.models.fastconvmae import FastConvMAE
from tests.engine.tiny import Batches
from tests.pictures import image_folder

PUBLISHED = {                                             # recipe: (task, the official command)
    "convmae/convvit_base_patch16_pretrain": (
        "pretrain", "--accum_iter 1 --batch_size 128 --model convmae_convvit_base_patch16 --norm_pix_loss "
        "--mask_ratio 0.75 --epochs 1600 --warmup_epochs 40 --blr 1.5e-4 --weight_decay 0.05"),
    "convmae/convvit_base_patch16_finetune": (
        "finetune", "--accum_iter 1 --batch_size 32 --model convvit_base_patch16 --epochs 100 --blr 5e-4 "
        "--layer_decay 0.65 --weight_decay 0.05 --drop_path 0.1 --reprob 0.25 --mixup 0.8 --cutmix 1.0 --dist_eval "
        "--finetune CKPT"),
    "convmae/convvit_base_patch16_linprobe": (
        "linprobe", "--accum_iter 1 --batch_size 128 --model convvit_base_patch16 --global_pool --epochs 90 --blr 0.1 "
        "--weight_decay 0.0 --dist_eval --finetune CKPT"),
    "fastconvmae/convvit_base_patch16_pretrain": (
        "pretrain", "--batch_size 64 --model fastconvmae_convvit_base_patch16 --norm_pix_loss --mask_ratio 0.75 "
        "--epochs 50 --warmup_epochs 10 --blr 6.0e-4 --weight_decay 0.05"),
}
SIZES = dict(img_size=16, patch_size=[1, 2, 2], embed_dim=[4, 6, 8], depth=[1, 1, 1], num_heads=2, mlp_ratio=[2, 2, 2])
DECODER = dict(decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)


def pretraining(kind=MaskedAutoencoderConvViT, seed: int = 0, **kwargs):
    paddle.seed(seed)
    return kind(**SIZES | DECODER | kwargs)


def method(kind=MaskedAutoencoderConvViT, seed: int = 0, **values) -> MAE:
    settings = {"lr": 1e-2, "warmup_epochs": 0, "epochs": 2, "batch_size": 4} | values
    return MAE(config.build("pretrain", MAE, "convmae_convvit_tiny_patch4", settings), pretraining(kind, seed))


def pretraining_file(path, kind=MaskedAutoencoderConvViT, **kwargs):
    model = pretraining(kind, **kwargs)
    save_torch(path, {"model": relayout({k: v.numpy() for k, v in model.state_dict().items()}, transposed_keys(model))})
    return path, model


# ---- requests

@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_published_commands_are_accepted_unchanged_and_mean_what_their_recipe_says(recipe):
    task, command = PUBLISHED[recipe]
    common = ["--data_path", "DATA"]
    given = config.parse(task, shlex.split(command) + common)
    stored = config.parse(task, ["-c", recipe, *common] + (["--finetune", "CKPT"] if task != "pretrain" else []))
    assert given.flat() == stored.flat()
    assert given.method == {"pretrain": "mae"}.get(task, task)


@pytest.mark.parametrize("recipe, world, effective, lr", [
    ("convmae/convvit_base_patch16_pretrain", 24, 3072, 1.8e-3),
    ("convmae/convvit_base_patch16_finetune", 32, 1024, 2e-3),
    ("convmae/convvit_base_patch16_linprobe", 32, 4096, 1.6),
    ("fastconvmae/convvit_base_patch16_pretrain", 8, 512, 1.2e-3)])
def test_the_published_commands_train_at_the_published_batch_and_rate(recipe, world, effective, lr):
    request = config.parse(recipe.rsplit("_", 1)[1], ["-c", recipe, "--data_path", "DATA"])
    model = pretraining() if request.task == "pretrain" else ConvViT(**SIZES)
    resolved = methods.get(request.task, request.method)(request, model, world=world)
    assert request.train.batch_size * request.train.accum_iter * world == effective
    assert resolved.peak_lr == pytest.approx(lr)


@pytest.mark.parametrize("name", ["convmae", "fastconvmae"])
def test_the_demo_recipes_are_the_tiny_models(name):
    request = config.parse("pretrain", ["-c", f"{name}/demo_pretrain"])
    assert (request.method, request.model, request.data.data_path) == ("mae", f"{name}_convvit_tiny_patch4", "demo")


def test_a_mask_ratio_that_leaves_a_rest_is_refused_before_anything_is_written(tmp_path, capsys):
    flags = ["--model", "fastconvmae_convvit_tiny_patch4", "--input_size", "16", "--mask_ratio", "0.7",
             "--batch_size", "4", "--num_workers", "0", "--data_path", str(image_folder(tmp_path / "data")), "--device", "cpu"]
    assert cli.main("pretrain", [*flags, "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert "--mask_ratio 0.7: the nearest is 0.75" in said and "\n" not in said
    assert method(mask_ratio=0.7)                         # which ConvMAE takes
    with pytest.raises(BadRequest):
        method(FastConvMAE, mask_ratio=0.7)


# ---- pretraining

@pytest.mark.parametrize("kind", [MaskedAutoencoderConvViT, FastConvMAE])
def test_training_lowers_the_loss(kind):
    run = method(kind, epochs=10)
    losses = [m.stats["loss"].item() for m in train(run, run.build_optimizer(), Batches(), Plan(10), Progress())]
    assert np.mean(losses[-4:]) < 0.97 * np.mean(losses[:4])


def test_the_picture_shows_one_view_of_each_image():
    run = method(FastConvMAE, input_size=Size(16))
    batch = {"image": paddle.randn([3, 3, 16, 16]), "noise": paddle.rand([3, 16])}
    pixels, mask, normalised = run.reconstruct(batch)
    assert pixels.shape == [3, 3, 16, 16] and mask.sum(1).tolist() == [12.0] * 3 and not normalised
    assert (mask == (batch["noise"].argsort(1).argsort(1) >= 4).astype("float32")).all()


def test_the_mask_token_decays_and_vectors_do_not():
    decay = {name: g.weight_decay for g in method().build_optimizer().groups for name, _ in g.params}
    assert decay["mask_token"] == decay["blocks1.0.attn.weight"] == decay["stage1_output_decode.weight"] == 0.05
    assert decay["blocks1.0.attn.bias"] == decay["patch_embed1.norm.weight"] == 0.0 and "pos_embed" not in decay


# ---- classifiers

@pytest.mark.parametrize("kind", [MaskedAutoencoderConvViT, FastConvMAE])
@pytest.mark.parametrize("kwargs, new", [
    ({}, "fc_norm.bias"), ({"global_pool": False}, "head.bias"), ({"skip_first": True}, "fc_norm.bias")])
def test_the_encoder_comes_from_a_pretraining_file_of_either_kind(kind, kwargs, new, tmp_path):
    path, pretrained = pretraining_file(tmp_path / "p.pth", kind)
    model = ConvViT(**SIZES | kwargs, num_classes=3)
    said = "\n".join(load_encoder(model, str(path)))
    assert "stage1_output_decode, stage2_output_decode" in said and new in said
    assert (" norm," in said) == kwargs.get("global_pool", True)
    for key in ("blocks1.0.attn.weight", "patch_embed4.weight", "pos_embed", "blocks3.0.attn.qkv.weight"):
        assert (model.state_dict()[key] == pretrained.state_dict()[key]).all()


def test_easycvs_pretraining_file_is_taken_too(tmp_path):
    path, pretrained = pretraining_file(tmp_path / "p.pth", FastConvMAE)
    state = load(path).tree["model"]
    parts = {key: "decoder" if key.startswith(("mask_token", "decoder_")) else "encoder" for key in state}
    save_torch(tmp_path / "e.pth", {"state_dict": {f"{parts[k]}.{k}": v for k, v in state.items()}, "meta": {"epoch": 50}})
    model = ConvViT(**SIZES, num_classes=3, skip_first=True)
    load_encoder(model, str(tmp_path / "e.pth"))
    for key in ("blocks2.0.mlp.fc1.weight", "blocks3.0.mlp.fc1.weight"):
        assert (model.state_dict()[key] == pretrained.state_dict()[key]).all()


def test_the_position_table_is_resized_to_another_image_size_and_that_is_said(tmp_path):
    path, pretrained = pretraining_file(tmp_path / "p.pth")
    model = ConvViT(**SIZES | {"img_size": (16, 24)}, num_classes=3)
    assert "pos_embed resized from 4x4 to 4x6" in "\n".join(load_encoder(model, str(path)))
    assert model.pos_embed.shape == [1, 24, 8] and model.forward(paddle.randn([1, 3, 16, 24])).shape == [1, 3]


def test_finetuning_counts_blocks_of_all_stages_and_decays_the_rates_of_the_last():
    request = config.build("finetune", Finetune, "convvit_tiny_patch4", {"layer_decay": 0.5, "nb_classes": 3})
    run = Finetune(request, ConvViT(**SIZES))
    scales = {name: g.lr_scale for g in run.groups() for name, _ in g.params}
    assert scales["blocks1.0.attn.weight"] == scales["pos_embed"] == 0.25 and scales["blocks3.0.norm1.weight"] == 0.5
    assert scales["head.weight"] == 1.0
    assert run.sample(np.zeros((16, 16, 3), np.uint8), 0, np.random.default_rng(0))["path_noise"].shape == (3, 2)


def test_the_tiny_models_train_finetune_and_probe_from_the_command_line(tmp_path, capsys):
    common = ["--input_size", "16", "--batch_size", "4", "--num_workers", "0", "--epochs", "1", "--warmup_epochs", "0",
              "--device", "cpu", "--data_path", str(image_folder(tmp_path / "data", per_class=4))]
    for name in ("convmae", "fastconvmae"):
        flags = [*common, "--model", f"{name}_convvit_tiny_patch4", "--output_dir", str(tmp_path / name)]
        assert cli.main("pretrain", flags) == 0
    found = {name: str(checkpoint.found(tmp_path / name)[-1]) for name in ("convmae", "fastconvmae")}
    assert load(found["convmae"]).tree.keys() == load(found["fastconvmae"]).tree.keys()
    encoder = ["--model", "convvit_tiny_patch4", "--finetune", found["fastconvmae"], "--output_dir"]
    extra = ["--drop_path", "0.1", "--mixup", "0.8", "--model_ema"]
    assert cli.main("finetune", [*common, *encoder, str(tmp_path / "ft"), *extra]) == 0
    assert cli.main("linprobe", [*common, *encoder, str(tmp_path / "lp"), "--global_pool"]) == 0
    assert capsys.readouterr().out.count("encoder loaded") == 2
