"""Runs that begin in one framework go on in the other."""
from argparse import Namespace
from pathlib import Path

import numpy as np
import paddle
import pytest
import torch

from convert.contents import read
from convert.conversion import to_paddle, to_torch, write_paddle, write_torch
from convert.formats import Refused, load, save_torch
from convert.layout import transposed_keys
from convert.optimizer import adam_from_torch, beta_power
from convert.reference import mae
from convert.reference.tape import Tape
from ppssl import cli, config
from ppssl.engine import checkpoint
from ppssl.engine.loop import Plan, Progress, train
from ppssl.engine.precision import LossScale
from ppssl.methods.finetune import Finetune
from ppssl.methods.linprobe import LinearProbe, attach_probe_head
from ppssl.models.vit import VisionTransformer
from ppssl.optim.schedules import warmup_cosine
from tests.convert.formats_helpers import same
from tests.convert.networks import GOLDEN, random_weights, shapes_of
from tests.engine.tiny import Batches, method
from tests.golden.adapters.common import finals
from tests.pictures import image_folder

LR, WIDTHS = 1e-2, {"": 16, "decoder_": 8}                # of tests.engine.tiny
RESUMES = ["mae", "tec", "bootmae"]
SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}


class TorchRun:
    """MAE's official loop in small: AdamW over its two groups, the schedule, checkpoints of the official form."""

    def __init__(self, weights: dict, optimizer_state: dict | None = None):
        self.weights = {key: torch.tensor(np.array(value)) for key, value in weights.items()}
        trained = {k: v.requires_grad_() for k, v in self.weights.items() if not k.endswith("pos_embed")}
        free = [v for k, v in trained.items() if v.ndim == 1 or k.endswith(".bias")]
        decayed = [v for k, v in trained.items() if not (v.ndim == 1 or k.endswith(".bias"))]
        self.optimizer = torch.optim.AdamW([{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}], LR,
                                           betas=(0.9, 0.95))
        if optimizer_state:
            self.optimizer.load_state_dict(optimizer_state)

    def epochs(self, first: int, last: int) -> "TorchRun":
        """Train for the epochs from `first` to `last` of two."""
        data = Batches()
        for epoch in range(first, last + 1):
            for i, (images, noise) in enumerate(zip(data.images, data.noise)):
                for group in self.optimizer.param_groups:
                    group["lr"] = warmup_cosine(epoch + i / len(data), LR, 0.0, 0, 2)
                out = mae.forward(Tape(self.weights), torch.tensor(images), torch.tensor(noise), heads=2, decoder_heads=2)
                self.optimizer.zero_grad()
                out["loss"].backward()
                self.optimizer.step()
        return self

    def file(self, epoch: int) -> dict:
        return {"model": {k: v.detach() for k, v in self.weights.items()}, "optimizer": self.optimizer.state_dict(), "epoch": epoch,
                "scaler": {}, "args": Namespace(lr=LR, blr=0.64, batch_size=4, epochs=2, warmup_epochs=0, model="mae_vit_tiny_patch4")}

    def arrays(self) -> dict[str, np.ndarray]:
        return {k: v.detach().numpy() for k, v in self.weights.items()}


def official(m) -> dict[str, np.ndarray]:
    """A method's weights under official names and in PyTorch's layout."""
    return {name.removeprefix("final/"): value for name, value in finals(m.model).items()}


def assert_close(ours: dict, theirs: dict) -> None:
    """Within the float32 noise that the golden training cases allow; the key rows of qkv.bias have no true gradient."""
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        rows = np.ones(len(value), bool)
        if key.endswith("attn.qkv.bias"):
            rows[len(value) // 3:2 * len(value) // 3] = False
        assert np.abs(ours[key] - value)[rows].max() <= 5e-6 * np.abs(value).max(), key


def epochs(m, progress: Progress, stop_after: int = 2, restore=None):
    """Run the product's loop over the epochs that are left; returns the optimizer."""
    optimizer = m.build_optimizer()
    if restore:
        restore(optimizer)
    for micro in train(m, optimizer, Batches(), Plan(2), progress):
        if micro.ends_epoch and progress.epoch + 1 == stop_after:
            break
    return optimizer


def test_a_run_begun_in_pytorch_goes_on_in_paddle(tmp_path):
    start = official(method(seed := 3))
    torch.save(TorchRun(start).epochs(0, 0).file(epoch=0), tmp_path / "checkpoint-0.pth")
    ours = method(seed + 1)
    snap = checkpoint.read(tmp_path / "checkpoint-0.pth")
    progress = checkpoint.restore(snap, ours, optimizer := ours.build_optimizer())
    assert (progress.epoch, progress.batch, progress.step, optimizer.steps) == (1, 0, 4, 4)
    list(train(ours, optimizer, Batches(), Plan(2), progress))
    assert_close(official(ours), TorchRun(start).epochs(0, 1).arrays())
    whole = method(seed)
    epochs(whole, Progress())
    assert_close(official(ours), official(whole))


def test_a_run_begun_in_paddle_goes_on_in_pytorch(tmp_path):
    start, ours, whole = official(method(3)), method(3), method(3)
    progress = Progress()
    optimizer = epochs(ours, progress, stop_after=1)
    checkpoint.save(tmp_path / "run.safetensors", ours, optimizer, progress, LossScale(scale=4.0), world=1, batches=len(Batches()))
    tree, notes = to_torch(read(tmp_path / "run.safetensors"))
    write_torch(tmp_path / "run.pth", tree, False, lambda _: None)
    with torch.serialization.safe_globals([Namespace]):
        file = torch.load(tmp_path / "run.pth", weights_only=True)
    assert list(file) == ["model", "optimizer", "epoch", "scaler", "args"] and file["epoch"] == 0 and not notes
    assert file["args"].lr == LR and file["args"].batch_size == 4 and file["scaler"]["scale"] == 4.0
    torch.amp.GradScaler("cpu").load_state_dict(file["scaler"])
    gone_on = TorchRun(file["model"], file["optimizer"]).epochs(1, 1)
    assert_close(gone_on.arrays(), TorchRun(start).epochs(0, 1).arrays())
    epochs(whole, Progress())
    assert_close(gone_on.arrays(), official(whole))


@pytest.mark.parametrize("family", RESUMES)
def test_the_moments_of_an_official_file_are_the_methods_own(family):
    file = load(GOLDEN / family / "resume_checkpoint/checkpoint.pth").tree
    snap = checkpoint.read(GOLDEN / family / "resume_checkpoint/checkpoint.pth")
    found = read(GOLDEN / family / "resume_checkpoint/checkpoint.pth")
    from convert.training import config_of, trainee

    optimizer = trainee(config_of(found.args, found.main.network), found.main.network).build_optimizer()
    state, steps = adam_from_torch(file["optimizer"], optimizer, found.main.network.linear)
    assert steps == snap.optimizer_steps == snap.progress.step and snap.progress.epoch == file["epoch"] + 1 and snap.world is None
    assert same(dict(sorted(snap.tensors["optimizer"].items())), dict(sorted(state.items())))
    assert set(snap.tensors) == {"model", "optimizer"} | ({"ema"} if family == "bootmae" else set())
    assert (snap.scaler is None) == (file["scaler"] == {})


@pytest.mark.parametrize("name", [f"{f}/resume_checkpoint/checkpoint.pth" for f in RESUMES] + ["byol/tiny_train/checkpoint_epoch1.pth"])
def test_a_run_without_a_record_of_its_origin_becomes_the_official_file(name, tmp_path):
    """As a run of this project is: nothing but its tensors, its state and its options."""
    theirs = load(GOLDEN / name).tree
    converted = to_paddle(read(GOLDEN / name))
    metadata = {key: value for key, value in converted.metadata.items() if key != "recipe"}
    write_paddle(tmp_path / "run", type(converted)(converted.tensors, metadata), False, lambda _: None)
    ours, _ = to_torch(read(tmp_path / "run"))
    assert list(ours) == [key for key in ("config", "epoch", "steps", "model", "optimizer", "epoch", "scaler", "args", "model_ema", "amp")
                          if key in theirs] or set(ours) == set(theirs)
    assert all(same(ours[key], theirs[key]) for key in ("model", "model_ema", "epoch", "steps") if key in theirs)
    assert same(ours["optimizer"]["state"], theirs["optimizer"]["state"])
    for mine, group in zip(ours["optimizer"]["param_groups"], theirs["optimizer"]["param_groups"], strict=True):
        assert mine["params"] == group["params"] and set(group) <= set(mine)
        assert mine.get("lars_exclude") == group.get("lars_exclude")


def test_a_run_saved_inside_an_epoch_starts_that_epoch_again(tmp_path):
    ours = method()
    optimizer, progress = ours.build_optimizer(), Progress()
    stepping = train(ours, optimizer, Batches(), Plan(2), progress)
    for _ in range(6):
        next(stepping)
    checkpoint.save(tmp_path / "run", ours, optimizer, progress, None, world=2, batches=len(Batches()))
    tree, [note] = to_torch(read(tmp_path / "run"))
    assert tree["epoch"] == 0 and "inside an epoch" in note and tree["optimizer"]["state"][0]["step"] == 6


def classifier_run(kind, values: dict, probe: bool, path: Path):
    """Some steps of a tiny classifier, saved."""
    paddle.seed(0)
    model = VisionTransformer(**SMALL, global_pool=not probe)
    if probe:
        attach_probe_head(model)
    values = {"lr": 0.1, "warmup_epochs": 0, "batch_size": 4, "nb_classes": 3} | values
    m = kind(config.build(kind.task, kind, "vit_tiny_patch4", values), model)
    batch = {"image": paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)),
             "label": paddle.to_tensor([0, 1, 2, 1])}
    optimizer = m.build_optimizer()
    for _ in range(3):
        m.train_mode()
        m.loss(m.network, batch, None)[0].backward()
        optimizer.step(0.1)
        optimizer.clear_grad()
    checkpoint.save(path, m, optimizer, Progress(epoch=1), None, world=1)
    return m, optimizer


@pytest.mark.parametrize("kind, probe, slots", [(LinearProbe, True, {"mu"}), (Finetune, False, {"step", "exp_avg", "exp_avg_sq"})])
def test_finetuning_and_probing_states_go_there_and_back(kind, probe, slots, tmp_path):
    m, optimizer = classifier_run(kind, {}, probe, tmp_path / "run")
    tree, _ = to_torch(read(tmp_path / "run"))
    assert all(set(entry) == slots for entry in tree["optimizer"]["state"].values())
    assert [g["lr_scale"] for g in tree["optimizer"]["param_groups"]] == [g.lr_scale for g in optimizer.groups]
    linear = transposed_keys(m.model)
    order = [name for g in optimizer.groups for name, _ in g.params]
    slot, own = ("mu", "momentum") if probe else ("exp_avg", "moment1")
    stored = {key: value.numpy() for key, value in optimizer.state().items()}
    for position, entry in tree["optimizer"]["state"].items():
        value = stored[f"{own}.{order[position]}"]
        assert same(np.ascontiguousarray(entry[slot]), np.ascontiguousarray(value.T if order[position] in linear else value))
    save_torch(tmp_path / "official.pth", tree)
    snap = checkpoint.read(tmp_path / "official.pth")
    again = {key: np.array(value) for key, value in snap.tensors["optimizer"].items()}
    assert snap.config["task"] == kind.task and snap.progress.epoch == 1
    assert all(np.allclose(again[key], value, rtol=1e-6, atol=0) for key, value in stored.items()) and again.keys() == stored.keys()


TINY = ["--model", "mae_vit_tiny_patch4", "--input_size", "16", "--batch_size", "4", "--num_workers", "0", "--warmup_epochs", "0",
        "--device", "cpu", "--epochs", "2"]


def tiny_official_file(path: Path) -> Path:
    """What the authors' script would have left after the first epoch of mae_vit_tiny_patch4 at 16 px."""
    from ppssl.models import registry

    weights = random_weights(shapes_of(registry.find("pretrain", "mae_vit_tiny_patch4"), img_size=(16, 16)))
    run = TorchRun({key: 0.02 * value for key, value in weights.items()})
    for parameter in run.weights.values():
        parameter.grad = torch.ones_like(parameter)
    run.optimizer.step()
    torch.save(run.file(epoch=0), path)
    return path


def pretrain(folder: Path, *flags) -> int:
    return cli.main("pretrain", [*TINY, "--data_path", str(folder.parent / "data"), "--output_dir", str(folder), *flags])


def test_main_pretrain_resumes_from_the_authors_file_and_from_its_conversion_alike(tmp_path, capsys):
    image_folder(tmp_path / "data")
    file = tiny_official_file(tmp_path / "checkpoint-0.pth")
    write_paddle(tmp_path / "converted.safetensors", to_paddle(read(file)), False, lambda _: None)
    for name, resumed in (("a", file), ("b", tmp_path / "converted.safetensors")):
        assert pretrain(tmp_path / name, "--resume", str(resumed)) == 0
        assert "1 epochs and 0 batches done, step 1" in capsys.readouterr().out
    first, second = (load(checkpoint.found(tmp_path / name)[-1]).tree for name in "ab")
    assert same(first, second)


def test_a_file_that_cannot_be_resumed_is_refused_in_one_line(tmp_path, capsys):
    image_folder(tmp_path / "data")
    file = load(tiny_official_file(tmp_path / "checkpoint-0.pth")).tree
    weights = {"weights": {"model": file["model"]}, "optimizer": file | {"optimizer": {"state": {}, "param_groups": [
        {"params": [0, 1], "betas": (0.9, 0.95)}]}}}
    for name, fix in (("weights", "--finetune"), ("optimizer", "holds 2 parameters")):
        save_torch(tmp_path / f"{name}.pth", weights[name])
        assert pretrain(tmp_path / name, "--resume", str(tmp_path / f"{name}.pth")) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert fix in line


def test_a_training_state_that_cannot_go_on_is_converted_as_it_is_and_says_so(tmp_path):
    file = load(tiny_official_file(tmp_path / "x.pth")).tree
    file["optimizer"]["state"][0]["exp_avg"] = np.zeros(3, np.float32)
    save_torch(tmp_path / "odd.pth", file)
    converted = to_paddle(read(tmp_path / "odd.pth"))
    assert "state" not in converted.metadata and "not a run to resume" in converted.notes[0]
    with pytest.raises(Refused, match="has the shape"):
        to_paddle(read(tmp_path / "odd.pth"), strict=True)


@pytest.mark.parametrize("beta", [0.9, 0.95, 0.999])
def test_powers_of_beta_are_multiplied_as_paddle_does_and_an_absurd_count_costs_nothing(beta):
    product = np.float32(beta)
    for _ in range(1000):
        product = product * np.float32(beta)
    assert beta_power(beta, 1000) == product and abs(beta_power(beta, 10**15)) < 1e-40
