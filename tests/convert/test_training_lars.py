"""A BYOL run that begins in one framework goes on in the other: LARS' momentum, both networks, batch norms, schedules."""
import math
from pathlib import Path

import numpy as np
import paddle
import pytest
import torch
import torch.nn.functional as F

from convert.contents import read
from convert.conversion import to_torch, write_torch
from convert.families import build_byol
from convert.reference import byol
from convert.reference.tape import Tape
from convert.reference.train import teacher_pairs
from ppssl import config
from ppssl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ppssl.engine import checkpoint
from ppssl.engine.loop import Plan, Progress, train
from ppssl.methods.byol import BYOL
from tests.golden.adapters.common import finals

RESNET = {"bottleneck": False, "blocks": [1, 1], "planes": [4, 8], "stem": 4, "strides": [1, 2], "expansion": 1}
SIZES = {"dim": 6, "projection_hidden": 8, "prediction_hidden": 7}
BASE_LR, BATCH, BATCHES, EPOCHS = 32.0, 4, 3, 2
STEPS, PEAK = BATCHES * EPOCHS, BASE_LR * BATCH / 256
FIXED = ("bn", "downsample.1", "bias")                    # what the authors' code leaves out of decay and adaptation
OPTIONS = {"model": {"base_momentum": 0.9}, "data": {"train_batch_size": BATCH, "num_examples": BATCH * BATCHES},
           "optimizer": {"base_lr": BASE_LR, "momentum": 0.9, "weight_decay": 1e-2, "total_epochs": EPOCHS, "warmup_epochs": 0,
                         "exclude_bias_and_bn": True}}


class Batches:
    """Pairs of random views, the same in every epoch."""

    def __init__(self):
        self.views = np.random.default_rng(0).integers(0, 256, (BATCHES, BATCH, 2, 16, 16, 3), dtype=np.uint8)

    def __len__(self):
        return BATCHES

    def epoch(self, epoch, first=0):
        for views in self.views[first:]:
            yield {"views": paddle.to_tensor(views)}


def method(seed: int) -> BYOL:
    paddle.seed(seed)
    values = {"blr": BASE_LR, "batch_size": BATCH, "epochs": EPOCHS, "warmup_epochs": 0, "weight_decay": 1e-2, "base_momentum": 0.9}
    model = build_byol(RESNET, **SIZES)
    model.align_target()
    return BYOL(config.build("pretrain", BYOL, "byol_resnet_tiny", values), model)


class TrainingTape(Tape):
    """Batch norms as in training: the batch's statistics, and running ones that follow them."""

    def batch_norm(self, name, x, eps, training=False):
        running = [self.weight(f"{name}.running_{s}") for s in ("mean", "var")]
        self.weight(f"{name}.num_batches_tracked").add_(1)
        return F.batch_norm(x, *running, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), training=True, eps=eps)


class Lars(torch.optim.Optimizer):
    """The authors' rule: the rate is inside the buffer, a group's `lars_exclude` leaves its tensor unadapted."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.0, "momentum": 0.9, "dampening": 0, "weight_decay": 1e-2, "nesterov": False, "eta": 1e-3})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            [p] = group["params"]
            decay, share = group["weight_decay"], 1.0
            if not group.get("lars_exclude"):
                share = group["eta"] * p.norm() / (p.grad.norm() + decay * p.norm())
            moved = (p.grad + decay * p) * (share * group["lr"])
            buffer = self.state[p].get("momentum_buffer")
            self.state[p]["momentum_buffer"] = moved if buffer is None else buffer.mul_(group["momentum"]).add_(moved)
            p.sub_(self.state[p]["momentum_buffer"])


class TorchRun:
    """The authors' loop in small."""

    def __init__(self, weights: dict, optimizer_state: dict | None = None):
        self.weights = {key: torch.tensor(np.array(value)) for key, value in weights.items()}
        trained = {k: v.requires_grad_() for k, v in self.weights.items()
                   if not k.startswith("target") and "running" not in k and "num_batches" not in k}
        self.optimizer = Lars([{"params": [p]} | ({"weight_decay": 0, "lars_exclude": True} if any(f in k for f in FIXED) else {})
                               for k, p in trained.items()])
        if optimizer_state:
            self.optimizer.load_state_dict(optimizer_state)

    def epochs(self, first: int, last: int) -> "TorchRun":
        """Train for the epochs from `first` to `last`, counted from 1."""
        for epoch in range(first, last + 1):
            for i, views in enumerate(Batches().views):
                self.step((epoch - 1) * BATCHES + i, torch.from_numpy(views))
        return self

    def step(self, number: int, views: torch.Tensor) -> None:
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        first, second = ((v.permute(0, 3, 1, 2) / 255 - mean) / std for v in views.unbind(1))
        half_cosine = (math.cos(math.pi * number / STEPS) + 1) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK / 1000 + (PEAK - PEAK / 1000) * half_cosine
        tape = TrainingTape(self.weights)
        q = byol.mlp(tape, "predictor.predictor", self.project(tape, "online", torch.cat([first, second])))
        momentum = 1 - 0.1 * half_cosine
        with torch.no_grad():
            for target, online in teacher_pairs("byol", {"model": self.weights}):
                target.mul_(momentum).add_((1 - momentum) * online)
            z = self.project(tape, "target", torch.cat([second, first]))
        loss = 2 - 2 * (F.normalize(q, dim=1) * F.normalize(z, dim=1)).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def project(self, tape: Tape, net: str, images: torch.Tensor) -> torch.Tensor:
        features = byol.encoder(tape, byol.numbered(f"{net}_network.encoder"), images)
        return byol.mlp(tape, f"{net}_network.projetion", features)

    def file(self, epoch: int) -> dict:
        return {"config": OPTIONS, "epoch": epoch, "steps": epoch * BATCHES, "model": {k: v.detach() for k, v in self.weights.items()},
                "optimizer": self.optimizer.state_dict(), "amp": {}}

    def arrays(self) -> dict[str, np.ndarray]:
        return {k: v.detach().numpy() for k, v in self.weights.items()}


def official(m: BYOL) -> dict[str, np.ndarray]:
    return {name.removeprefix("final/"): value for name, value in finals(m.model).items()}


def assert_close(ours: dict, theirs: dict) -> None:
    """Within float32 noise (golden byol/tiny_train: 3.5e-5); a bias before a batch norm moves by rounding alone."""
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        scale = 1.0 if key.endswith("l1.bias") else np.abs(value).max()
        assert np.abs(ours[key] - value).max() <= 2e-5 * scale, key


def run(m: BYOL, progress: Progress, optimizer, stop_after: int = EPOCHS) -> None:
    for micro in train(m, optimizer, Batches(), Plan(EPOCHS), progress):
        if micro.ends_epoch and progress.epoch + 1 == stop_after:
            break


def saved(m: BYOL, path: Path, world: int = 1) -> Path:
    """The checkpoint of a run's first epoch."""
    progress, optimizer = Progress(), m.build_optimizer()
    run(m, progress, optimizer, stop_after=1)
    checkpoint.save(path, m, optimizer, progress, None, world, batches=BATCHES)
    return path


@pytest.fixture(scope="module")
def whole() -> dict[str, dict]:
    """Both epochs in one framework, from the same start."""
    m = method(3)
    torch_run = TorchRun(official(m)).epochs(1, EPOCHS)
    run(m, Progress(), m.build_optimizer())
    return {"Paddle": official(m), "PyTorch": torch_run.arrays()}


def test_both_frameworks_train_alike(whole):
    assert_close(whole["Paddle"], whole["PyTorch"])
    start = official(method(3))
    moved = [key for key, value in whole["PyTorch"].items() if np.abs(value - start[key]).max() > 1e-3 * np.abs(value).max()]
    assert len(moved) > 0.8 * len(start)


def test_a_run_begun_in_pytorch_goes_on_in_paddle(whole, tmp_path):
    torch.save(TorchRun(official(method(3))).epochs(1, 1).file(epoch=1), tmp_path / "theirs.pth.tar")
    ours = method(4)
    snap = checkpoint.read(tmp_path / "theirs.pth.tar")
    progress = checkpoint.restore(snap, ours, optimizer := ours.build_optimizer())
    assert (progress.epoch, progress.step) == (1, BATCHES) and snap.config["blr"] == BASE_LR
    run(ours, progress, optimizer)
    assert_close(official(ours), whole["PyTorch"])
    assert_close(official(ours), whole["Paddle"])


def test_a_run_begun_in_paddle_goes_on_in_pytorch(whole, tmp_path):
    tree, notes = to_torch(read(saved(method(3), tmp_path / "run")))
    write_torch(tmp_path / "ours.pth.tar", tree, False, lambda _: None)
    file = torch.load(tmp_path / "ours.pth.tar", weights_only=True)
    assert (file["epoch"], file["steps"], file["config"]["distributed"], notes) == (1, BATCHES, False, ())
    gone_on = TorchRun(file["model"], file["optimizer"]).epochs(file["epoch"] + 1, EPOCHS)
    assert_close(gone_on.arrays(), whole["PyTorch"])
    assert_close(gone_on.arrays(), whole["Paddle"])


def test_a_run_of_several_ranks_has_the_names_of_the_distributed_wrapper(tmp_path):
    """The authors' code loads it strictly into its distributed model."""
    m = method(3)
    tree, _ = to_torch(read(saved(m, tmp_path / "run", world=2)))
    assert list(tree["model"]) == [f"module.{key}" for key in official(m)] and tree["config"]["distributed"]
    write_torch(tmp_path / "ours.pth.tar", tree, False, lambda _: None)
    again = checkpoint.read(tmp_path / "ours.pth.tar")
    assert again.progress.step == BATCHES and set(again.tensors["model"]) == set(official(m))
