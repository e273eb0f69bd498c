"""The recipes that come along: complete, readable by machines, and listed."""
import re

import pytest

from ppssl import cli, recipe
from ppssl.config import parse

NAMES = recipe.names()
TASKS = ("pretrain", "finetune", "linprobe")


def task_of(name: str) -> str:
    return name.rsplit("_", 1)[1]


def notes(argv: list[str]) -> str:
    return " ".join(parse("pretrain", argv).notes)


def written(tmp_path, text: str):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_accepted_and_says_what_it_is(name):
    settings, path = parse(task_of(name), ["-c", name]), recipe.locate(name)
    head = recipe.head(path)
    assert settings.task == task_of(name) and {"about", "source"} <= set(head)
    assert "expected" in head or "/demo_" in name
    assert len(head) == len(re.findall(r"^# ?\S", path.read_text(), re.MULTILINE))           # no line of it is lost
    assert all(head.values()) and head.get("ranks", "1").isdigit()


@pytest.mark.parametrize("name", [n for n in NAMES if "/demo_" in n])
def test_a_demo_is_small_and_says_what_it_runs_on(name):
    settings, head = parse(task_of(name), ["-c", name]), recipe.head(recipe.locate(name))
    assert (settings.data.data_path, settings.data.input_size, head["ranks"]) == ("demo", (32, 32), "1")
    assert (head["source"], head["hardware"]) == ("this project", "2 CPU cores")


def test_a_head_is_the_first_comment_with_lines_that_go_on(tmp_path):
    path = written(tmp_path, "# about: one\n#   and two\n# mood: good\n# ranks: 8\nepochs: 1\n# note: later\n")
    assert recipe.head(path) == {"about": "one and two", "ranks": "8"} and recipe.ranks(path) == 8


@pytest.mark.parametrize("text", ["epochs: 1\n", "# a comment\nepochs: 1\n", "# ranks: many\nepochs: 1\n", "#   indented\n"])
def test_a_recipe_without_such_a_head_is_for_no_number_of_ranks(tmp_path, text):
    assert recipe.ranks(written(tmp_path, text)) is None


@pytest.mark.parametrize("task", TASKS)
def test_list_shows_every_recipe_and_model_of_the_task(task, capsys):
    assert cli.main(task, ["--list"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(\w+/\S+)  ", said, re.MULTILINE) == [n for n in NAMES if task_of(n) == task]
    models = re.findall(r"\w+", said.split("models:")[1])
    assert ("mae_vit_base_patch16" in models) == (task == "pretrain") and ("resnet50" in models) == (task == "linprobe")


def test_a_row_of_the_list_holds_the_facts_of_its_recipe(capsys):
    cli.main("pretrain", ["--list"])
    rows = {line.split()[0]: re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines() if "/" in line}
    assert rows["mae/vit_base_patch16_pretrain"][1:] == [
        "mae_vit_base_patch16", "1600", "4096", "finetuning 83.664 % top-1, linear probe 67.8 %", "facebookresearch/mae PRETRAIN.md"]
    assert rows["bootmae/bootmae_base_pretrain"][1:4] == ["bootmae_base", "801", "4096"]


def test_a_run_with_another_effective_batch_than_its_recipe_is_told_how_to_make_it(monkeypatch):
    name = ["-c", "mae/vit_base_patch16_pretrain"]                                             # 32 ranks of 128
    assert "an effective batch of 4096 on 32 ranks, this run has 128: --accum_iter 32 would make it" in notes(name)
    assert "this run has 256: --accum_iter 64 would make it" in notes([*name, "--batch_size", "64", "--accum_iter", "4"])
    assert "this run has 100: --batch_size and --accum_iter change it" in notes([*name, "--batch_size", "100"])
    assert "effective batch" not in notes([*name, "--accum_iter", "32"])
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "32")
    assert "effective batch" not in notes(name)


def test_the_demo_without_arguments_needs_no_notes():
    assert not parse("pretrain", []).notes
