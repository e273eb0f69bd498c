"""The authors' own command lines, and BYOL's YAML file, run unchanged and mean what they meant; wrong ones are refused in a line."""
import json
import shlex
from pathlib import Path

import paddle
import pytest
import yaml
from paddle import nn

from convert.formats import save_torch
from convert.layout import relayout, transposed_keys
from ppssl import cli, config, methods
from ppssl.models import registry
from tests.methods.test_byol import official
from tests.pictures import image_folder

COMMANDS = yaml.safe_load((Path(__file__).parent / "commands.yaml").read_text())
PLACES = {"data_path", "output_dir", "finetune", "num_workers", "nb_classes", "model"}       # what a recipe leaves to the user


def task_of(command: dict) -> str:
    return command["entry"].removeprefix("main_").removesuffix(".py")


def request(command: dict) -> config.Config:
    return config.parse(task_of(command), shlex.split(command["args"]))


def network(settings: config.Config):
    """The function that builds the model of a request. TEC's commands have MAE's names."""
    name = f"tec_{settings.model.removeprefix('mae_').removeprefix('tec_')}" if settings.method == "tec" else settings.model
    return registry.find("pretrain" if settings.task == "pretrain" else "classifier", name).build


class Patches(nn.Layer):
    """Stands in for a network of 224 px: as many patches, no weights."""
    grid, num_patches, num_blocks = (14, 14), 196, 12

    @property
    def patch_embed(self):
        return self


def resolved(command: dict):
    """The method of a command on the document's number of ranks, around a stand-in for its network."""
    settings = request(command)
    extra = {"base": Patches()} if settings.method == "tec" else {}
    return methods.get(settings.task, settings.method)(settings, Patches(), world=command["means"]["ranks"], **extra)


def by_name(command: dict) -> str:
    return command["name"]


@pytest.mark.parametrize("command", COMMANDS, ids=by_name)
def test_a_published_command_resolves_to_its_method_batch_and_rate(command):
    method, means = resolved(command), command["means"]
    train = method.config.train
    assert method.name == means["method"]
    assert train.batch_size * train.accum_iter * means["ranks"] == means["batch"]
    assert method.peak_lr == pytest.approx(means["lr"])


@pytest.mark.parametrize("command", COMMANDS, ids=by_name)
def test_a_published_command_is_what_its_recipe_says(command):
    given, stored = request(command), config.parse(task_of(command), ["-c", command["recipe"]])
    values, recipe = given.flat(), stored.flat()
    differing = {key for key in values.keys() | recipe.keys() if values.get(key) != recipe.get(key)}
    assert differing - PLACES == set(command.get("differs", []))
    assert network(given) is network(stored)


def test_bootmaes_finetuning_takes_the_rate_as_it_is_and_its_pretraining_scales_it():
    rates = {c["name"]: (resolved(c).config.train.lr, resolved(c).peak_lr) for c in COMMANDS if c["name"].startswith("bootmae")}
    assert rates["bootmae_finetune"] == (5e-3, 5e-3)
    assert rates["bootmae_pretrain"] == (1.5e-4, pytest.approx(1.5e-4 * 4096 / 256))


AT_FULL_SIZE = ("mae_finetune", "mae_linprobe", "convmae_pretrain", "fastconvmae_pretrain", "bootmae_pretrain", "bootmae_finetune",
                "bootmae_linprobe", "tec_mae_base_pretrain_300")


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c["name"] in AT_FULL_SIZE], ids=by_name)
def test_a_dry_run_of_a_published_command_builds_it_at_full_size(command, tmp_path, capsys):
    """On one rank of the document's, without the files that a real run needs."""
    places = {"DATA": str(image_folder(tmp_path / "data")), "OUT": str(tmp_path / "out"), "CKPT": "missing.pth"}
    arguments = [places.get(a, a) for a in shlex.split(command["args"])]
    assert cli.main(task_of(command), [*arguments, "--dry_run"]) == 0
    said, means = capsys.readouterr().out, command["means"]
    assert f"({means['method']}), model" in said and f"effective batch:            {means['batch'] // means['ranks']} =" in said
    assert "missing.pth" not in arguments or "there is no file missing.pth" in said
    assert means["method"] != "tec" or "mae_pretrain_vit_base.pth: its authors link it at" in said
    assert not (tmp_path / "out").exists()


def test_byols_own_yaml_file_trains(tmp_path, capsys):
    """The authors' file, with a network, a data set and a schedule that fit into a test."""
    def small(content):
        content["model"] |= {"backbone": {"type": "resnet_tiny", "pretrained": False},
                             "projection": {"type": "MLP", "input_dim": 128, "hidden_dim": 16, "output_dim": 8},
                             "predictor": {"type": "MLP", "input_dim": 8, "hidden_dim": 16, "output_dim": 8}}
        content["data"] |= {"image_dir": str(image_folder(tmp_path / "images")), "train_batch_size": 4, "data_workers": 0,
                            "num_examples": 16}
        content["optimizer"] |= {"total_epochs": 2, "warmup_epochs": 1}
        content["log"]["log_step"] = 1
    flags = ["--input_size", "32", "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    assert cli.main("pretrain", ["--config", official(tmp_path, small), *flags]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    said = capsys.readouterr().out
    assert [line["epoch"] for line in lines] == [0, 1] and all(0 < line["train_loss"] < 4 for line in lines)
    assert "note: data.train_list" in said and "[Iter: 4/4] lr:" in said and len(list((tmp_path / "out").glob("checkpoint-*"))) == 2


# ---- requests that cannot be met

SMALL = ["--input_size", "16", "--batch_size", "4", "--num_workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set and an official-looking checkpoint of every tiny pretraining model, by its name."""
    folder = tmp_path_factory.mktemp("place")
    image_folder(folder / "data")
    for name in ("mae_vit_tiny_patch4", "convmae_convvit_tiny_patch4", "bootmae_tiny_patch4", "byol_resnet_tiny"):
        model = registry.create("pretrain", name, **({} if name.startswith("byol") else {"img_size": 16}))
        save_torch(folder / name, {"model": relayout({k: v.numpy() for k, v in model.state_dict().items()}, transposed_keys(model))})
    return folder


def refused(place, capsys, task: str, *flags: str) -> str:
    """What a request on the data of `place` is refused with; nothing is written."""
    assert cli.main(task, [*SMALL, "--data_path", str(place / "data"), "--output_dir", str(place / "out"), *flags]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and not list(place.glob("out/checkpoint*"))
    return line


@pytest.mark.parametrize("task, model, held, said", [
    ("finetune", "vit_tiny_patch4", "byol_resnet_tiny", "(BYOL pretraining network byol_resnet_tiny) holds no encoder for this model"),
    ("finetune", "vit_tiny_patch4", "convmae_convvit_tiny_patch4", "(ConvMAE pretraining network"),
    ("finetune", "vit_tiny_patch4", "bootmae_tiny_patch4", "(BootMAE pretraining network bootmae_tiny_patch4) holds no encoder"),
    ("finetune", "convvit_tiny_patch4", "mae_vit_tiny_patch4", "(MAE pretraining network mae_vit_tiny_patch4) holds no encoder"),
    ("finetune", "bootmae_tiny_patch4", "mae_vit_tiny_patch4", "(MAE pretraining network mae_vit_tiny_patch4) does not fit"),
    ("linprobe", "vit_tiny_patch4", "byol_resnet_tiny", "holds no encoder for this model"),
    ("linprobe", "resnet_tiny", "mae_vit_tiny_patch4", "the file is of another network"),
])
def test_a_checkpoint_of_another_network_is_refused_by_what_it_is(place, capsys, task, model, held, said):
    assert said in refused(place, capsys, task, "--model", model, "--finetune", str(place / held))


@pytest.mark.parametrize("held", ["byol_resnet_tiny", "convmae_convvit_tiny_patch4"])
def test_a_base_model_that_is_no_vit_is_refused(place, capsys, held):
    line = refused(place, capsys, "pretrain", "--model", "tec_vit_tiny_patch4", "--basemodel_ckpt", str(place / held))
    assert "holds no ViT: give an encoder of MAE or iBOT" in line


BOOT = ("--model", "bootmae_tiny_patch4", "--feature_weight", "1")


@pytest.mark.parametrize("task, flags, said", [
    ("pretrain", BOOT, "--feature_weight needs the teacher: add --model_ema"),
    ("pretrain", (*BOOT, "--model_ema", "--mask_num", "17"), "--mask_num 17 of 16 patches: give 1 to 16"),
    ("pretrain", (*BOOT, "--model_ema", "--mask_num", "4", "--num_mask_patches", "30"), "lower --num_mask_patches"),
    ("linprobe", ("--model", "bootmae_tiny_patch4", "--depth", "9"), "which has 4 blocks: give 1 to 4"),
    ("linprobe", ("--model", "bootmae_tiny_patch4", "--depth", "0"), "depth must be at least 1"),
    ("pretrain", ("--model", "mae_vit_tiny_patch4", "--mask_ratio", "1"), "keeps 0 of 16 patches"),
    ("pretrain", ("--model", "convmae_convvit_tiny_patch4", "--mask_ratio", "0"), "keeps 16 of 16 patches"),
    pytest.param("pretrain", ("--model", "mae_vit_tiny_patch4", "--device", "gpu"), "--device cpu",
                 marks=pytest.mark.skipif(paddle.device.is_compiled_with_cuda(), reason="this Paddle has it")),
    ("finetune", ("--model", "vit_tiny_patch4", "--finetune", "."), "is a folder, not a checkpoint"),
])
def test_what_a_model_cannot_do_is_refused_before_training(place, capsys, task, flags, said):
    assert said in refused(place, capsys, task, *flags)


def test_a_split_given_as_the_data_set_is_refused_with_the_folder_to_give(place, capsys):
    line = refused(place, capsys, "pretrain", "--model", "mae_vit_tiny_patch4", "--data_path", str(place / "data" / "train"))
    assert f"{place / 'data' / 'train'} is a split: give the folder that holds it" in line
