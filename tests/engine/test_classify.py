"""Finetuning and probing as whole runs: loading, evaluating, keeping the best, several ranks."""
import json

import numpy as np
import pytest

from convert.formats import load, save_torch
from convert.layout import relayout, transposed_keys
from ppssl import cli
from ppssl.engine import checkpoint
from ppssl.models import registry
from tests.launching import launch
from tests.pictures import image_folder

SMALL = ["--input_size", "16", "--batch_size", "4", "--num_workers", "0", "--warmup_epochs", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set of 3 classes with 7 evaluation images each, and a pretraining checkpoint."""
    folder = tmp_path_factory.mktemp("place")
    image_folder(folder / "data", classes=3, per_class=8, splits=("train",))
    image_folder(folder / "data", classes=3, per_class=7, splits=("val",))
    flags = [*SMALL, "--data_path", str(folder / "data")]
    assert cli.main("pretrain", [*flags, "--model", "mae_vit_tiny_patch4", "--epochs", "1", "--output_dir", str(folder / "mae")]) == 0
    return folder, flags, str(checkpoint.found(folder / "mae")[-1])


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


def test_finetuning_starts_from_the_encoder_says_what_it_dropped_and_keeps_the_best(place, tmp_path, capsys):
    _, flags, pretrained = place
    out = tmp_path / "out"
    assert cli.main("finetune", [*flags, "--model", "vit_tiny_patch4", "--finetune", pretrained, "--epochs", "2", "--model_ema",
                                 "--mixup", "0.8", "--cutmix", "1", "--output_dir", str(out)]) == 0
    said = capsys.readouterr().out
    assert "encoder loaded" in said and "tensors of pretraining dropped (decoder_blocks" in said and "new: head.weight" in said
    assert {"test_acc1", "test_acc5", "test_loss", "test_ema_acc1", "train_loss", "train_lr", "images_per_s", "seconds"} <= set(lines(out)[0])
    assert all(line["test_count"] == 21 for line in lines(out))
    best = load(out / "checkpoint-best.safetensors")
    assert max(line["test_acc1"] for line in lines(out)) == pytest.approx(json.loads(best.metadata["state"])["progress"]["best"])
    assert best.tree["model.head.weight"].shape == (128, 3) and "ema.head.weight" in best.tree


def test_a_resumed_finetuning_with_drop_path_erasing_mixup_and_average_is_bit_identical(place, tmp_path):
    _, flags, pretrained = place
    flags = [*flags, "--model", "vit_tiny_patch4", "--finetune", pretrained, "--epochs", "2", "--model_ema", "--mixup", "0.8", "--drop_path", "0.3",
             "--reprob", "0.9", "--accum_iter", "2"]
    assert cli.main("finetune", [*flags, "--output_dir", str(tmp_path / "whole")]) == 0
    assert cli.main("finetune", [*flags, "--output_dir", str(tmp_path / "parts"), "--max_train_step", "2"]) == 0
    assert cli.main("finetune", [*flags, "--output_dir", str(tmp_path / "parts"), "--resume", "auto"]) == 0
    whole, parts = (load(checkpoint.found(tmp_path / run)[-1]).tree for run in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(np.array_equal(whole[k], parts[k]) for k in whole)


def test_probing_trains_the_head_alone_and_reports_nearest_neighbours(place, tmp_path):
    _, flags, pretrained = place
    out = tmp_path / "out"
    assert cli.main("linprobe", [*flags, "--model", "vit_tiny_patch4", "--finetune", pretrained, "--epochs", "1", "--knn", "--global_pool",
                                 "--output_dir", str(out)]) == 0
    before, after = load(pretrained).tree, load(checkpoint.found(out)[-1]).tree
    assert np.array_equal(before["model.blocks.0.mlp.fc1.weight"], after["model.blocks.0.mlp.fc1.weight"])
    assert set(k for k in after if k.startswith("optimizer.")) == {"optimizer.momentum.head.1.weight", "optimizer.momentum.head.1.bias"}
    assert after["model.head.0.num_batches_tracked"] == 6 and 0 <= lines(out)[0]["knn_acc1"] <= 100


@pytest.mark.parametrize("task", ["finetune", "linprobe"])
def test_eval_alone_gives_what_training_reported(place, tmp_path, capsys, task):
    _, flags, pretrained = place
    out = tmp_path / "out"
    flags = [*flags, "--model", "vit_tiny_patch4"]
    assert cli.main(task, [*flags, "--finetune", pretrained, "--epochs", "1", "--output_dir", str(out)]) == 0
    capsys.readouterr()
    for way in ("--resume", "--finetune") if task == "finetune" else ("--resume",):
        assert cli.main(task, [*flags, "--eval", way, str(checkpoint.found(out)[-1])]) == 0
        said = capsys.readouterr().out
        assert f"acc1: {lines(out)[-1]['test_acc1']:.3f}" in said and "warning" not in said


def test_two_ranks_evaluate_every_image_once(place, tmp_path):
    _, flags, pretrained = place
    out = tmp_path / "out"
    code, said = launch(tmp_path / "log", "main_linprobe.py", *flags, "--model", "vit_tiny_patch4", "--finetune", pretrained, "--epochs", "1",
                        "--output_dir", str(out))
    assert code == 0 and lines(out)[0]["test_count"] == 21, said


def test_an_official_file_is_finetuned_like_a_converted_one(place, tmp_path):
    """The same weights as .pth in PyTorch's layout and as this project's checkpoint."""
    _, flags, pretrained = place
    own = {k[len("model."):]: v for k, v in load(pretrained).tree.items() if k.startswith("model.")}
    flipped = transposed_keys(registry.create("pretrain", "mae_vit_tiny_patch4", img_size=16))
    save_torch(tmp_path / "official.pth", {"model": relayout(own, flipped)})
    results = []
    for name, file in (("a", pretrained), ("b", str(tmp_path / "official.pth"))):
        assert cli.main("finetune", [*flags, "--model", "vit_tiny_patch4", "--finetune", file, "--epochs", "1", "--output_dir", str(tmp_path / name)]) == 0
        results.append(load(checkpoint.found(tmp_path / name)[-1]).tree)
    assert all(np.array_equal(results[0][k], results[1][k]) for k in results[0])


@pytest.mark.parametrize("model, extra, said", [
    ("vit_base_patch16", ["--input_size", "32"], "is of another size"),
    ("vit_tiny_patch4", ["--nb_classes", "2"], "--nb_classes 2 and 3 class folders"),
    ("vit_tiny_patch4", ["--mixup", "0.8", "--batch_size", "3"], "even --batch_size"),
    ("vit_tiny_patch4", ["--aa", "augmix"], "augmix"),
    ("vit_tiny_patch4", ["--finetune", "/nowhere.pth"], "No such file"),
    ("vit_tiny_patch4", ["--eval"], "--resume"),
])
def test_a_wrong_request_is_refused_in_one_line(place, tmp_path, capsys, model, extra, said):
    _, flags, pretrained = place
    given = [] if extra[0] in ("--eval", "--finetune") else ["--finetune", pretrained]
    assert cli.main("finetune", [*flags, "--model", model, *given, *extra, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_file_without_an_encoder_is_refused(place, tmp_path, capsys):
    _, flags, _ = place
    save_torch(tmp_path / "head.pth", {"model": {"head.weight": np.zeros((3, 128), np.float32)}})
    assert cli.main("finetune", [*flags, "--model", "vit_tiny_patch4", "--finetune", str(tmp_path / "head.pth"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "holds no encoder" in capsys.readouterr().err


def test_another_image_size_resizes_the_position_table_and_says_so(place, tmp_path, capsys):
    _, flags, pretrained = place
    assert cli.main("finetune", [*flags, "--model", "vit_tiny_patch4", "--finetune", pretrained, "--input_size", "24x32", "--epochs", "1",
                                 "--output_dir", str(tmp_path / "out")]) == 0
    assert "pos_embed resized from 4x4 to 6x8" in capsys.readouterr().out
