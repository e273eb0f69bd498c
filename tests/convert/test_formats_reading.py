"""Files that other tools write open, bit for bit."""

import argparse
import collections
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import paddle
import pytest
import safetensors.numpy
import torch

from convert.formats import load, save_torch
from tests.convert.formats_helpers import same, training_state

GOLDEN = sorted(Path(__file__).parents[1].glob("golden/*/*/checkpoint.pth"))
BOTH_TORCH_FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["torch-zip", "torch-legacy"])
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def as_plain(value):
    """PyTorch's tree with arrays for tensors and Python's numbers for numpy's."""
    if isinstance(value, torch.Tensor):
        return as_array(value)
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value] if isinstance(value, list) else tuple(map(as_plain, value))
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**as_plain(vars(value)))
    return value.item() if isinstance(value, np.generic) else value


def reread(tmp_path, value, zipped=True, **options):
    torch.save(value, tmp_path / "file", _use_new_zipfile_serialization=zipped, **options)
    loaded = load(tmp_path / "file")
    assert loaded.format == ("torch-zip" if zipped else "torch-legacy")
    return loaded.tree


@BOTH_TORCH_FORMS
def test_training_state_of_a_real_loop_opens(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])  # its state holds a Counter
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "_growth_tracker": 3},
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.999), resume=None),
        "random": torch.get_rng_state(),
    }
    assert same(reread(tmp_path, state, zipped), as_plain(state))


@BOTH_TORCH_FORMS
@pytest.mark.parametrize("dtype", [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
], ids=str)
def test_every_torch_dtype_and_rank_opens(tmp_path, dtype, zipped):
    tensors = [torch.tensor(3).to(dtype), torch.zeros(0, 2, dtype=dtype), torch.arange(24).reshape(2, 3, 4).to(dtype)]
    assert same(reread(tmp_path, tensors, zipped), [as_array(tensor) for tensor in tensors])


@BOTH_TORCH_FORMS
def test_strided_expanded_and_tied_tensors_open(tmp_path, zipped):
    base = torch.arange(60.0).reshape(3, 4, 5)
    tied = torch.nn.Parameter(torch.ones(2))
    tensors = [base.permute(2, 0, 1), base[1:, ::2, 1:4:2], base[..., 2], torch.zeros(1).expand(3, 4), tied, tied]
    assert same(reread(tmp_path, tensors, zipped), [as_array(tensor) for tensor in tensors])


@BOTH_TORCH_FORMS
def test_values_beside_tensors_become_plain(tmp_path, zipped):
    counts = collections.defaultdict(list)
    counts["x"].append(1)
    value = {
        "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cuda:1"),
        "best": np.float64(83.6), "seen": np.int64(5), "done": np.bool_(True), "mean": np.float32([0.5, 0.25]),
        "counts": counts, "order": collections.OrderedDict(b=1, a=2), "big": 10**30, "history": [None, -1, "ß", ()],
    }
    expected = {
        "size": (2, 3), "dtype": "torch.bfloat16", "device": "cuda:1",
        "best": 83.6, "seen": 5, "done": True, "mean": np.float32([0.5, 0.25]),
        "counts": {"x": [1]}, "order": {"b": 1, "a": 2}, "big": 10**30, "history": [None, -1, "ß", ()],
    }
    assert same(reread(tmp_path, value, zipped), expected)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_other_pickle_protocols_open(tmp_path, protocol):
    assert same(reread(tmp_path, {"w": torch.ones(2), "n": np.ones(3)}, pickle_protocol=protocol),
                {"w": np.ones(2, np.float32), "n": np.ones(3)})


def test_safetensors_open_with_order_and_metadata(tmp_path):
    tensors = {"z": np.arange(6.0).reshape(2, 3), "a": np.array(3, np.int8), "e": np.zeros((2, 0), bool)}
    safetensors.numpy.save_file(tensors, tmp_path / "file", metadata={"made by": "somebody"})
    loaded = load(tmp_path / "file")
    assert (loaded.format, loaded.metadata) == ("safetensors", {"made by": "somebody"})
    assert all(same(loaded.tree[name], tensors[name]) for name in tensors)


def test_paddle_layer_and_optimizer_files_open(tmp_path):
    layer = paddle.nn.Linear(2, 3)
    optimizer = paddle.optimizer.AdamW(paddle.optimizer.lr.StepDecay(0.1, 3), parameters=layer.parameters())
    layer(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    paddle.save(layer.state_dict(), str(tmp_path / "layer.pdparams"))
    paddle.save(optimizer.state_dict(), str(tmp_path / "layer.pdopt"))
    weights, moments = load(tmp_path / "layer.pdparams"), load(tmp_path / "layer.pdopt")
    assert weights.format == moments.format == "paddle"
    assert same(weights.tree, {name: tensor.numpy() for name, tensor in layer.state_dict().items()})
    assert weights.parameter_names == {"weight": layer.weight.name, "bias": layer.bias.name}
    assert moments.tree["LR_Scheduler"] == {"last_epoch": 0, "last_lr": 0.1}
    assert same(moments.tree[f"{layer.weight.name}_moment1_0"],
                optimizer.state_dict()[f"{layer.weight.name}_moment1_0"].numpy())


def test_nested_paddle_file_opens_with_bfloat16(tmp_path):
    state = {"model": {"w": paddle.ones([2], "bfloat16"), "s": paddle.to_tensor(3)}, "epoch": 3,
             "args": argparse.Namespace(lr=0.1), "pair": ("name", 1.0)}
    paddle.save(state, str(tmp_path / "file"))
    assert same(load(tmp_path / "file").tree, {
        "model": {"w": np.ones(2, BFLOAT16), "s": np.array(3)}, "epoch": 3,
        "args": argparse.Namespace(lr=0.1), "pair": ("name", 1.0),
    })


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_protocols_open(tmp_path, protocol):
    paddle.save({"w": paddle.ones([300, 2])}, str(tmp_path / "file"), protocol=protocol)
    assert same(load(tmp_path / "file").tree, {"w": np.ones((300, 2), np.float32)})


def test_fortran_ordered_arrays_open(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    (tmp_path / "file").write_bytes(pickle.dumps({"w": array, "p": ("linear_0.w_0", array)}, protocol=4))
    assert same(load(tmp_path / "file").tree, {"w": array, "p": array})


@pytest.mark.skipif(not GOLDEN, reason="no golden checkpoints here")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_official_checkpoints_open(path):
    assert same(load(path).tree, as_plain(torch.load(path, weights_only=False)))


def test_the_format_is_told_by_content_not_by_name(tmp_path):
    save_torch(tmp_path / "weights.safetensors", {"w": np.ones(2)})
    assert load(str(tmp_path / "weights.safetensors")).format == "torch-zip"


def test_neither_torch_nor_paddle_is_imported(tmp_path):
    save_torch(tmp_path / "file", training_state())
    script = ("import sys; from convert.formats import load, save_torch, save_paddle; tree = load(sys.argv[1]).tree; "
              "save_torch(sys.argv[1] + '2', tree); save_paddle(sys.argv[1] + '3', tree); "
              "sys.exit('torch' in sys.modules or 'paddle' in sys.modules)")
    command = [sys.executable, "-c", script, tmp_path / "file"]
    assert subprocess.run(command, timeout=60, cwd=Path(__file__).parents[2]).returncode == 0
