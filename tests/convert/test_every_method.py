"""Runs of every method, as the command line makes them, through PyTorch's form and back: nothing of them is lost."""
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convert.__main__ import main
from convert.formats import load
from ppssl.engine import checkpoint
from tests.engine.every_method import REQUESTS, Requests
from tests.pictures import image_folder

EXTRA = {
    "byol_linear": ("linprobe", ["--model", "resnet_tiny", "--finetune", "BYOL", "--lr", "0.1"]),
    "boot_finetune": ("finetune", ["--model", "bootmae_tiny_patch4", "--finetune", "BOOTMAE", "--lr", "1e-3"]),
}
SLOW = ("convmae", "boot_finetune", "byol_linear")
AVERAGES = ("bootmae", "finetune")
SLOTS = {"linprobe": ("mu",), "byol": ("momentum_buffer",), "byol_linear": ("momentum_buffer",)}


class Keeper(torch.optim.Optimizer):
    """Takes any state that belongs to its groups, as the authors' own LARS does."""


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    return Requests(folder, image_folder(folder / "data", per_class=4))


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in [*REQUESTS, *EXTRA]])
def run(request, requests):
    """Two epochs of a method, the file that PyTorch gets after the first, and how to go on from one."""
    name = request.param

    def go(out: str, *flags: str) -> list:
        requests.here([wanted(requests, name, out, "--batch_size", "4", *flags)])
        return checkpoint.found(requests.folder / out)
    first, last = go(name)
    official = requests.folder / f"{name}.pth"
    assert main(["to-torch", str(first), "-o", str(official)]) == 0
    return SimpleNamespace(name=name, first=first, last=last, official=official, go=go)


def wanted(requests: Requests, name: str, out: str, *flags: str) -> list[str]:
    """As Requests.request, for the methods of EXTRA as well, whose pretrained file is made first."""
    if name in REQUESTS:
        return requests.request(name, out, *flags)
    task, own = EXTRA[name]
    method = own[own.index("--finetune") + 1].lower()
    if not (requests.folder / f"pretrained_{method}").exists():
        requests.here([requests.request(method, f"pretrained_{method}", "--epochs", "1", "--batch_size", "4")])
    [_, *common] = requests.request("mae", out, *flags)
    pretrained = str(requests.newest(f"pretrained_{method}"))
    return [task, *common[len(REQUESTS["mae"][1]):], *(pretrained if f.isupper() else f for f in own)]


def test_a_run_that_goes_on_from_its_pytorch_file_is_the_run_that_never_left(run):
    """Bit for bit: weights, averages, teachers, running statistics, optimizer state and the count of steps."""
    again = run.go(f"{run.name}_again", "--resume", str(run.official))[-1]
    ours, theirs = load(again).tree, load(run.last).tree
    assert again.name == run.last.name and ours.keys() == theirs.keys()
    assert [key for key in theirs if not np.array_equal(ours[key], theirs[key])] == []


def test_torch_loads_the_official_file_and_its_optimizer_takes_the_state(run):
    with torch.serialization.safe_globals([Namespace]):
        file = torch.load(run.official, weights_only=True)
    assert ("model_ema" in file) == (run.name in AVERAGES) and ("args" in file or "config" in file)
    state = file["optimizer"]
    shapes = {i: next(v.shape for v in entry.values() if v.ndim) for i, entry in state["state"].items()}
    assert sorted(shapes) == [i for group in state["param_groups"] for i in group["params"]]
    groups = [{"params": [torch.zeros(shapes[i], requires_grad=True) for i in group["params"]]} for group in state["param_groups"]]
    [slots] = {tuple(entry) for entry in state["state"].values()}
    assert slots == SLOTS.get(run.name, ("step", "exp_avg", "exp_avg_sq"))
    if slots[0] != "step":
        return Keeper(groups, {"lr": 0.1}).load_state_dict(state)
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(state)
    for p in (p for group in groups for p in group["params"]):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {3}


def test_the_file_that_pytorch_gets_is_verified_against_the_run(run, capsys):
    assert main(["verify", str(run.first), str(run.official)]) == 0
    assert "0 different" in capsys.readouterr().out
