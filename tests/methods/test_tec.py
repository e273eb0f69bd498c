"""TEC's requests, base model files and training."""
import shlex
from collections import OrderedDict

import numpy as np
import paddle
import pytest

from convert.formats import save_checkpoint, save_paddle, save_torch
from convert.layout import relayout, transposed_keys
from ppssl import cli, config
from ppssl.engine import checkpoint
from ppssl.engine.loop import Plan, Progress, train
from ppssl.errors import BadRequest
from ppssl.methods import tec_base
from ppssl.methods.finetune import Finetune
from ppssl.methods.tec import TEC
from ppssl.methods.tec_base import NAMED, Named, build_base, checkpoint_folder
from ppssl.models.mae import MaskedAutoencoderViT
from ppssl.models.tec import TECViT
from ppssl.models.tec_base import BaseModel
from ppssl.models.vit import TECVisionTransformer, VisionTransformer
from tests.engine.tiny import Batches
from tests.pictures import image_folder

PRETRAIN = ("--mlp_token --pred_att --topkatt {} --att_tau {} --basemodel {} --model mae_vit_{}_patch16 --last_layers 2 --batch_size 256 "
            "--mask_ratio 0.75 --epochs {} --warmup_epochs 40 --blr 1.5e-4 --weight_decay 0.05 --accum_iter 2")
FINETUNE = ("--mlp_token --accum_iter 1 --batch_size 128 --model vit_base_patch16 --finetune CKPT --epochs 100 --blr 5e-4 "
            "--layer_decay {} {} --weight_decay 0.05 --drop_path 0.1 --mixup 0.8 --cutmix 1.0 --reprob 0.25 --dist_eval")
LARGE = ("--mlp_token --accum_iter 2 --batch_size 64 --model vit_large_patch16 --finetune CKPT --epochs 50 --blr 1e-3 --layer_decay 0.65 "
         "--min_lr 1e-5 --warmup_epochs 5 --weight_decay 0.05 --drop_path 0.1 --mixup 0.8 --cutmix 1.0 --reprob 0.25 --dist_eval")
PUBLISHED = {                                             # recipe: the official command
    "vit_base_patch16_mae_300ep_pretrain": PRETRAIN.format(15, 1.8, "mae1kbase", "base", 300),
    "vit_base_patch16_mae_800ep_pretrain": PRETRAIN.format(15, 1.8, "mae1kbase", "base", 800),
    "vit_base_patch16_ibot_300ep_pretrain": PRETRAIN.format(9, 1.0, "ibot1kbase", "base", 300),
    "vit_base_patch16_ibot_800ep_pretrain": PRETRAIN.format(9, 1.0, "ibot1kbase", "base", 800),
    "vit_base_patch16_mae300ep_100ep_pretrain": PRETRAIN.format(15, 1.8, "mae1k300ep", "base", 100),
    "vit_large_patch16_mae_300ep_pretrain": PRETRAIN.format(15, 1.4, "mae1klarge", "large", 300),
    "vit_base_patch16_mae_300ep_finetune": FINETUNE.format(0.65, "--warmup_epochs 20"),
    "vit_base_patch16_mae_800ep_finetune": FINETUNE.format(0.55, "--warmup_epochs 20"),
    "vit_base_patch16_ibot_300ep_finetune": FINETUNE.format(0.50, "--warmup_epochs 5"),
    "vit_base_patch16_ibot_800ep_finetune": FINETUNE.format(0.55, "--warmup_epochs 20"),
    "vit_base_patch16_mae300ep_100ep_finetune": FINETUNE.format(0.65, ""),
    "vit_large_patch16_mae_300ep_finetune": LARGE,
}
SIZES = dict(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
PLAIN = SIZES | {"num_classes": 10}


def new_model(**kwargs) -> TECViT:
    paddle.seed(0)
    return TECViT(**SIZES | dict(decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2, mlp_token=True, pred_att=True) | kwargs)


def base_model(seed: int = 5, **kwargs) -> BaseModel:
    paddle.seed(seed)
    return BaseModel(**SIZES | kwargs)


def official(model) -> dict[str, np.ndarray]:
    """A model's tensors in PyTorch's layout."""
    return relayout({k: v.numpy() for k, v in model.state_dict().items()}, transposed_keys(model))


def method(base=None, **values) -> TEC:
    settings = {"lr": 1e-2, "warmup_epochs": 0, "epochs": 2, "batch_size": 4, "pred_att": True, "topkatt": 4} | values
    return TEC(config.build("pretrain", TEC, "tec_vit_tiny_patch4", settings), new_model(), base=base or base_model())


def base_file(path, **kwargs):
    save_torch(path, {"model": official(base_model(**kwargs))})
    return path


def build(model=None, name="", ckpt="", folder=None, dry_run=False) -> BaseModel:
    return build_base(model or new_model(), name, str(ckpt), folder, dry_run)


def same_weights(a, b) -> bool:
    return all(np.array_equal(t.numpy(), b.state_dict()[k].numpy()) for k, t in a.state_dict().items())


# ---- requests

@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_published_commands_are_accepted_unchanged_and_mean_what_their_recipe_says(recipe):
    task = recipe.rsplit("_", 1)[1]
    given = config.parse(task, shlex.split(PUBLISHED[recipe]) + ["--data_path", "DATA", "--output_dir", "OUT"])
    stored = config.parse(task, ["-c", f"tec/{recipe}", "--data_path", "DATA", "--output_dir", "OUT"]
                          + (["--finetune", "CKPT"] if task == "finetune" else []))
    assert given.method == stored.method == ("tec" if task == "pretrain" else "finetune")
    assert given.flat() | {"model": ""} == stored.flat() | {"model": ""}
    assert given.options.mlp_token and given.model.removeprefix("mae_") == stored.model.removeprefix("tec_")


def test_a_published_command_resolves_to_its_values():
    request = config.parse("pretrain", shlex.split(PUBLISHED["vit_base_patch16_ibot_300ep_pretrain"]) + ["--data_path", "DATA"])
    o = request.options
    assert (o.basemodel, o.topkatt, o.att_tau, o.last_layers, o.mask_ratio, o.pred_att) == ("ibot1kbase", 9, 1.0, 2, 0.75, True)
    assert (request.run.seed, request.train.weight_decay, request.train.min_lr) == (5, 0.05, 0.0)
    on_eight = TEC(config.build("pretrain", TEC, request.model, {"batch_size": 256, "accum_iter": 2, "blr": 1.5e-4}), new_model(),
                   world=8, base=base_model())
    assert on_eight.peak_lr == pytest.approx(2.4e-3)


def test_the_same_model_name_without_a_base_model_stays_mae():
    assert config.parse("pretrain", ["--model", "mae_vit_base_patch16"]).method == "mae"
    with pytest.raises(BadRequest, match="belongs to TEC pretraining"):
        config.parse("pretrain", ["--model", "mae_vit_base_patch16", "--pred_att"])


def test_the_demo_recipe_is_tec_on_the_tiny_model():
    request = config.parse("pretrain", ["-c", "tec/demo_pretrain", "--basemodel_ckpt", "FILE"])
    assert (request.method, request.model, request.options.basemodel_ckpt) == ("tec", "tec_vit_tiny_patch4", "FILE")


def test_a_model_of_a_size_that_tec_does_not_have_is_refused():
    with pytest.raises(BadRequest, match="TEC has no model of the size of mae_vit_huge_patch14: there are tec_vit_tiny"):
        TEC(config.build("pretrain", TEC, "mae_vit_huge_patch14", {"basemodel": "mae1kbase"}))


# ---- base models

def forms(base) -> dict:
    """Every form in which a base model's weights may lie in a PyTorch file."""
    state = official(base)
    head = {"module.head.mlp.0.weight": np.ones([3, 16], np.float32), "module.head.last_layer.weight": np.ones([2, 3], np.float32)}
    student = {f"module.backbone.{k}": v for k, v in state.items()} | {"module.backbone.masked_embed": np.ones([1, 16], np.float32)}
    other = {f"backbone.{k}": np.zeros_like(v) for k, v in state.items()}
    decoder = {"mask_token": np.ones([1, 1, 8], np.float32), "decoder_embed.weight": np.ones([8, 16], np.float32)}
    return {"model": {"model": state}, "state_dict": {"state_dict": OrderedDict(state)}, "flat": state,
            "own pretraining": {"model": state | decoder, "epoch": 3}, "iBOT": {"student": student | head, "teacher": other},
            "globally pooled": {"model": {k: v for k, v in state.items() if not k.startswith("norm.")}
                                | {"head.weight": np.ones([3, 16], np.float32), "fc_norm.bias": np.ones([16], np.float32)}}}


@pytest.mark.parametrize("form", forms(base_model()))
def test_a_base_model_is_read_from_every_official_form(tmp_path, form, capsys):
    base = base_model()
    save_torch(tmp_path / "base.pth", forms(base)[form])
    found = build(ckpt=tmp_path / "base.pth")
    found.norm.set_state_dict(base.norm.state_dict())
    assert same_weights(base, found)
    said = capsys.readouterr().out
    assert ("decoder_embed, mask_token" in said) == (form == "own pretraining")
    assert ("not in the file, and not used: norm.weight" in said) == (form == "globally pooled")


def test_a_base_model_is_read_from_paddle_files_and_own_checkpoints(tmp_path):
    base = base_model()
    state = {k: v.numpy() for k, v in base.state_dict().items()}
    save_paddle(tmp_path / "base.pdparams", state)
    save_checkpoint(tmp_path / "own.safetensors", {f"model.{k}": v for k, v in state.items()}, {})
    assert all(same_weights(base, build(ckpt=tmp_path / name)) for name in ("base.pdparams", "own.safetensors"))


def test_a_base_model_given_by_path_may_have_another_depth(tmp_path):
    assert build(ckpt=base_file(tmp_path / "deep.pth", depth=5)).num_blocks == 5


def test_the_position_table_of_a_base_model_is_resized_to_the_image(tmp_path, capsys):
    found = build(new_model(img_size=32), ckpt=base_file(tmp_path / "small.pth"))
    assert found.pos_embed.shape == [1, 65, 16] and "resized from 4x4 to 8x8" in capsys.readouterr().out


@pytest.fixture
def tiny_names(monkeypatch):
    """The named base models, in a size that fits these tests."""
    monkeypatch.setitem(NAMED, "mae1kbase", Named("mae_pretrain_vit_base.pth", tec_base.MAE_SITE, 16, 2))
    monkeypatch.setitem(NAMED, "mae1klarge", Named("mae_pretrain_vit_large.pth", tec_base.MAE_SITE, 32, 2))


def test_a_named_base_model_is_found_by_its_official_file_name(tiny_names, tmp_path):
    base_file(tmp_path / "mae_pretrain_vit_base.pth")
    assert same_weights(base_model(), build(name="mae1kbase", folder=tmp_path))


def test_the_checkpoint_folder_is_the_flag_then_the_environment_then_a_fixed_one(monkeypatch):
    monkeypatch.delenv("PPSSL_CHECKPOINTS", raising=False)
    assert str(checkpoint_folder("")) == "checkpoints"
    monkeypatch.setenv("PPSSL_CHECKPOINTS", "elsewhere")
    assert (str(checkpoint_folder("")), str(checkpoint_folder("given"))) == ("elsewhere", "given")


def test_a_missing_base_model_is_refused_saying_where_it_comes_from_and_goes(tmp_path):
    with pytest.raises(BadRequest) as refusal:
        build(new_model(embed_dim=768, num_heads=12, depth=1), "ibot1kbase", folder=tmp_path)
    said = str(refusal.value)
    assert f"{tmp_path}/ibot-vit-base-teacher.pth" in said and f"put it into {tmp_path}/" in said
    assert "https://github.com/bytedance/ibot" in said and "\n" not in said


def test_a_dry_run_says_that_the_base_model_is_missing_and_goes_on(tiny_names, tmp_path, capsys):
    assert build(name="mae1kbase", folder=tmp_path, dry_run=True).num_blocks == 2
    assert "note: no base model" in capsys.readouterr().out
    assert build(ckpt=tmp_path / "no.pth", dry_run=True).num_blocks == 2


@pytest.mark.parametrize("kwargs, said", [
    ({}, "TEC needs a base model"), ({"name": "mae1kbse"}, "did you mean mae1kbase"),
    ({"name": "mae1klarge"}, "32 wide, the new model 16: use --basemodel mae1kbase"), ({"ckpt": "none.pth"}, "no base model none.pth")])
def test_a_base_model_that_cannot_be_is_refused(tiny_names, kwargs, said, tmp_path):
    with pytest.raises(BadRequest, match=said):
        build(folder=tmp_path, **kwargs)


@pytest.mark.parametrize("sizes, said", [({"embed_dim": 32}, "its cls_token is .*equally wide"), ({"patch_size": 8}, "equal patches")])
def test_a_file_of_another_width_or_patch_size_is_refused(tmp_path, sizes, said):
    with pytest.raises(BadRequest, match=said):
        build(ckpt=base_file(tmp_path / "other.pth", **sizes))


def test_a_named_file_of_another_depth_and_a_file_without_a_vit_are_refused(tiny_names, tmp_path):
    with pytest.raises(BadRequest, match="unknown .*blocks.2"):
        build(name="mae1kbase", ckpt=base_file(tmp_path / "deep.pth", depth=3))
    save_torch(tmp_path / "none.pth", {"model": {"layer1.weight": np.ones([3, 3], np.float32)}})
    with pytest.raises(BadRequest, match="holds no ViT"):
        build(ckpt=tmp_path / "none.pth")


def test_a_tec_file_as_base_model_has_to_be_folded_first(tmp_path):
    save_torch(tmp_path / "tec.pth", {"model": official(TECVisionTransformer(mlp_token=True, **PLAIN))})
    with pytest.raises(BadRequest, match="fold-tec"):
        build(ckpt=tmp_path / "tec.pth")


@pytest.mark.parametrize("values, said", [({"last_layers": 3}, "last_layers must be 1 to 2"), ({"last_layers": 0}, "last_layers"),
                                          ({"topkatt": 17}, "topkatt must be 1 to 16"), ({"topkatt": 0}, "topkatt")])
def test_counts_beyond_the_models_are_refused(values, said):
    with pytest.raises(BadRequest, match=said):
        method(**values)
    method(topkatt=17, pred_att=False)                    # then it is not used


# ---- training

def test_training_lowers_both_losses_and_leaves_the_base_model_as_it_was():
    base, before = base_model(), base_model()
    run = method(base, epochs=12)
    micros = list(train(run, run.build_optimizer(), Batches(), Plan(12), Progress()))
    stats = [{k: v.item() for k, v in m.stats.items()} for m in micros]
    assert set(stats[0]) == {"loss", "loss_fea", "loss_att"}
    assert all(s["loss"] == pytest.approx(s["loss_fea"] + s["loss_att"], rel=1e-6) for s in stats)
    first, last = ({k: np.mean([s[k] for s in part]) for k in stats[0]} for part in (stats[:4], stats[-4:]))
    assert last["loss_fea"] < 0.98 * first["loss_fea"]
    assert last["loss_att"] < 0.998 * first["loss_att"]   # which ends at the entropy of the base model's attention
    assert same_weights(before, base) and not base.training


def test_the_base_model_is_no_part_of_checkpoint_optimizer_or_replica():
    run = method()
    assert run.layers() == {"model": run.model} and run.network is run.model and run.frozen() == (run.base,)
    trained = {id(p) for g in run.build_optimizer().groups for p in g.tensors}
    assert not trained & {id(p) for p in run.base.parameters()}


def test_cls_and_mask_tokens_decay_and_vectors_do_not():
    decay = {name: g.weight_decay for g in method().build_optimizer().groups for name, _ in g.params}
    assert decay["cls_token"] == decay["forward_fea_decoder.mask_token"] == decay["forward_att_decoder.mask_token"] == 0.05
    assert decay["norm.weight"] == decay["encoder_adaptor.adap_before.weight"] == decay["cls_token_mlp.fc1.bias"] == 0.0


def tiny_run(tmp_path, *flags) -> list[str]:
    """Flags of a short TEC run on the checkpoint of a short MAE run."""
    data = str(image_folder(tmp_path / "data"))
    common = ["--input_size", "16", "--batch_size", "4", "--num_workers", "0", "--warmup_epochs", "0", "--device", "cpu", "--data_path", data]
    assert cli.main("pretrain", [*common, "--model", "mae_vit_tiny_patch4", "--epochs", "1", "--output_dir", str(tmp_path / "mae")]) == 0
    ckpt = str(checkpoint.found(tmp_path / "mae")[-1])
    return [*common, "--model", "tec_vit_tiny_patch4", "--basemodel_ckpt", ckpt, "--mlp_token", "--pred_att", "--topkatt", "5", *flags]


def test_a_dry_run_needs_no_base_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main("pretrain", ["-c", "tec/demo_pretrain", "--basemodel_ckpt", "no.safetensors", "--dry_run"]) == 0
    assert "no base model no.safetensors" in capsys.readouterr().out


# ---- finetuning

def finetuning(path, mlp_token: bool, model: str = "vit_tiny_patch4") -> Finetune:
    values = {"input_size": config.Size(16), "finetune": str(path), "mlp_token": mlp_token, "nb_classes": 3}
    return Finetune(config.build("finetune", Finetune, model, values))


@pytest.fixture
def tec_file(tmp_path):
    """A pretraining file of tec_vit_tiny_patch4."""
    paddle.seed(0)
    sizes = dict(img_size=16, patch_size=4, embed_dim=128, depth=4, num_heads=4, num_adap=2)
    model = TECViT(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, mlp_token=True, pred_att=True, **sizes)
    save_torch(tmp_path / "tec.pth", {"model": official(model)})
    return tmp_path / "tec.pth", model


def test_finetuning_takes_the_encoder_and_the_token_mlp_from_a_pretraining_file(tec_file, capsys):
    path, pretrained = tec_file
    model = finetuning(path, mlp_token=True).model
    assert isinstance(model, TECVisionTransformer) and not model.pos_embed.trainable
    for key in ("cls_token", "cls_token_mlp.fc2.weight", "blocks.3.mlp.fc1.weight", "pos_embed"):
        np.testing.assert_array_equal(model.state_dict()[key].numpy(), pretrained.state_dict()[key].numpy())
    assert "warning" not in capsys.readouterr().out


def test_leaving_the_flag_out_is_said_and_gives_maes_classifier(tec_file, capsys):
    model = finetuning(tec_file[0], mlp_token=False).model
    assert type(model) is VisionTransformer and model.pos_embed.trainable
    assert "warning: " in (said := capsys.readouterr().out) and "finetune with --mlp_token" in said


def test_asking_for_a_token_mlp_that_the_file_does_not_hold_is_refused(tmp_path):
    mae = MaskedAutoencoderViT(img_size=16, patch_size=4, embed_dim=128, depth=4, num_heads=4, decoder_embed_dim=16, decoder_depth=1)
    save_torch(tmp_path / "mae.pth", {"model": official(mae)})
    with pytest.raises(BadRequest, match="leave out --mlp_token"):
        finetuning(tmp_path / "mae.pth", mlp_token=True)


def test_the_flag_is_refused_for_networks_that_are_no_plain_vit():
    with pytest.raises(BadRequest, match="--mlp_token is for TEC's models"):
        finetuning("", mlp_token=True, model="convvit_base_patch16")


def test_the_cls_token_learns_at_the_full_rate_in_a_group_of_its_own():
    model = TECVisionTransformer(mlp_token=True, **PLAIN)
    run = Finetune(config.build("finetune", Finetune, "tec_vit_tiny_patch4", {"layer_decay": 0.5}), model)
    groups = run.groups()
    assert [name for name, _ in groups[0].params] == ["cls_token"] and (groups[0].lr_scale, groups[0].weight_decay) == (1.0, 0.0)
    scales = {name: g.lr_scale for g in groups for name, _ in g.params}
    assert (scales["patch_embed.proj.weight"], scales["blocks.1.norm1.bias"], scales["head.weight"]) == (0.125, 0.5, 1.0)
    assert scales["cls_token_mlp.fc1.weight"] == 1.0 and "pos_embed" not in scales
