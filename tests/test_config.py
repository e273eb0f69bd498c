"""The one way in: flags, recipes and their errors."""
import dataclasses
import shlex

import pytest
import yaml

from ppssl import config
from ppssl.config import Pair, Size, parse
from ppssl.errors import BadRequest

MAE_COMMANDS = {
    "pretrain": "--accum_iter 1 --batch_size 128 --model mae_vit_base_patch16 --norm_pix_loss --mask_ratio 0.75 --epochs 1600 "
                "--warmup_epochs 40 --blr 1.5e-4 --weight_decay 0.05 --data_path DATA",
    "finetune": "--accum_iter 1 --batch_size 128 --model maevit_base_patch16 --finetune CKPT --epochs 100 --blr 5e-4 --layer_decay 0.65 "
                "--weight_decay 0.05 --drop_path 0.1 --reprob 0.25 --mixup 0.8 --cutmix 1.0 --dist_eval --data_path DATA",
    "linprobe": "--accum_iter 1 --batch_size 512 --model maevit_base_patch16 --cls_token --finetune CKPT --epochs 90 --blr 0.1 "
                "--weight_decay 0.0 --dist_eval --data_path DATA",
}


def recipe(tmp_path, **keys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys))
    return str(path)


def test_a_published_command_means_what_it_says():
    settings = parse("finetune", shlex.split(MAE_COMMANDS["finetune"]))
    assert settings.model == "maevit_base_patch16" and settings.options.finetune == "CKPT"
    assert (settings.train.blr, settings.train.min_lr, settings.train.warmup_epochs) == (5e-4, 1e-6, 5)
    assert (settings.options.layer_decay, settings.options.mixup, settings.options.cutmix) == (0.65, 0.8, 1.0)
    assert settings.options.global_pool and "dist_eval" in settings.notes[0]


def test_cls_token_turns_global_pooling_off_and_probing_starts_with_it_off():
    assert parse("finetune", ["--model", "vit_base_patch16"]).options.global_pool
    assert not parse("finetune", ["--model", "vit_base_patch16", "--cls_token"]).options.global_pool
    assert not parse("linprobe", ["--model", "vit_base_patch16"]).options.global_pool


def test_without_arguments_the_tiny_model_trains_on_the_demo_set():
    settings = parse("pretrain", [])
    assert (settings.model, settings.data.data_path, settings.data.input_size) == ("mae_vit_tiny_patch4", "demo", Size(32))


def test_data_without_a_model_takes_the_official_default_model():
    assert parse("pretrain", ["--data_path", "DATA"]).model == "mae_vit_large_patch16"
    assert parse("pretrain", ["--data_path", "demo"]).model == "mae_vit_tiny_patch4"


def test_flags_win_over_overrides_and_overrides_over_the_recipe(tmp_path):
    path = recipe(tmp_path, model="mae_vit_base_patch16", epochs=1, batch_size=2, accum_iter=3)
    train = parse("pretrain", ["-c", path, "-o", "epochs=10", "-o", "batch_size=20", "--epochs", "100"]).train
    assert (train.epochs, train.batch_size, train.accum_iter) == (100, 20, 3)


def test_update_freq_is_another_name_of_accum_iter(tmp_path):
    path = recipe(tmp_path, model="mae_vit_base_patch16", update_freq=4)
    assert parse("pretrain", ["-c", path]).train.accum_iter == 4
    assert parse("pretrain", ["-c", path, "--update_freq", "8"]).train.accum_iter == 8


@pytest.mark.parametrize("argv, said", [
    (["--epoch", "3"], "did you mean epochs"),
    (["--mask_ration", "0.5"], "did you mean mask_ratio"),
    (["--layer_decay", "0.5"], "unknown flag --layer_decay"),
    (["--epochs", "three"], "epochs must be a whole number"),
    (["--epochs"], "expected one argument"),
    (["--input_size", "big"], "input_size must be a size"),
    (["--batch_size", "0"], "batch_size must be at least 1, not 0"),
    (["--update_freq", "0"], "accum_iter must be at least 1, not 0"),
    (["--num_workers", "-1"], "num_workers must be at least 0, not -1"),
    (["--device", "tpu"], "device must be cpu or gpu, not tpu"),
    (["--blr", "nan"], "blr must be a number"),
    (["--model", "mae_vit_bas_patch16"], "did you mean mae_vit_base_patch16"),
    (["--model", "vit_base_patch16"], "it is for main_finetune.py and main_linprobe.py"),
    (["--model", "resnet50"], "no pretrain model"),
    (["-c", "mae/nothing"], "no recipe mae/nothing"),
    (["-c", "mae/vit_base_pretrain"], "did you mean mae/vit_base_patch16_pretrain?"),
    (["-c", "mae/vit_base_patch16_finetune"], "is for main_finetune.py, this is main_pretrain.py"),
    (["-o", "epochs"], "key=value"),
    (["-o", "epocs=3"], "did you mean epochs"),
    (["-o", "norm_pix_loss=1"], "norm_pix_loss must be true or false"),
])
def test_a_wrong_request_is_one_line_with_the_fix(argv, said):
    with pytest.raises(BadRequest) as error:
        parse("pretrain", argv)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_family_without_a_method_for_the_task_names_what_there_is():
    with pytest.raises(BadRequest, match="resnet50 has no finetune method: .* main_pretrain.py and main_linprobe.py"):
        parse("finetune", ["--model", "resnet50"])


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1\n", "!!python/object/apply:os.system ['true']\n", "\x00"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(BadRequest):
        parse("pretrain", ["-c", str(path)])


def test_yaml_never_runs_code(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "recipe.yaml"
    path.write_text(f"epochs: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(BadRequest):
        parse("pretrain", ["-c", str(path)])
    with pytest.raises(BadRequest, match="-o takes"):
        parse("pretrain", ["-o", path.read_text().replace(": ", "=", 1)])
    assert not canary.exists()


def test_numbers_that_yaml_takes_for_text_are_still_numbers(tmp_path):
    assert parse("pretrain", ["-c", recipe(tmp_path, model="mae_vit_base_patch16", blr="5e-4")]).train.blr == 5e-4


@pytest.mark.parametrize("task", MAE_COMMANDS)
def test_a_config_survives_being_stored(task):
    settings = parse(task, shlex.split(MAE_COMMANDS[task]) + ["--input_size", "224x160"])
    stored = yaml.safe_load(yaml.safe_dump(settings.flat()))
    again = config.restore(stored)
    assert dataclasses.replace(again, dry_run=False) == dataclasses.replace(settings, notes=())


def test_sizes_and_pairs_are_written_in_the_usual_ways():
    assert Size(224) == Size("224") == Size([224, 224]) == (224, 224) and Size("224x160") == (224, 160)
    assert Pair("0.2,0.8") == Pair([0.2, 0.8]) == (0.2, 0.8)
