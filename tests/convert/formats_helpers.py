"""Trees, comparison and files shared by the tests of the file door."""

import io
import re
import zipfile
from argparse import Namespace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convert.formats import Refused, load, save_checkpoint, save_paddle, save_safetensors, save_torch

DTYPES = [np.dtype(name) for name in "f2 f4 f8 i1 i2 i4 i8 u1 ?".split()] + [np.dtype(ml_dtypes.bfloat16)]


def same(got, expected) -> bool:
    """Equal in type, order, shape, dtype and every bit; tensors of PyTorch and Paddle count as their arrays."""
    if isinstance(expected, np.ndarray):
        return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()
    if isinstance(expected, dict):
        return list(got) == list(expected) and all(same(got[key], expected[key]) for key in expected)
    if isinstance(expected, Namespace):
        return isinstance(got, Namespace) and same(vars(got), vars(expected))
    if isinstance(expected, (list, tuple)):
        return type(got) is type(expected) and len(got) == len(expected) and all(map(same, got, expected))
    return type(got) is type(expected) and repr(got) == repr(expected)


def training_state() -> dict:
    """What an official script saves: weights of several types, counters, options."""
    rng = np.random.default_rng(0)
    return {
        "model": {
            "proj.weight": rng.standard_normal((3, 4), np.float32),
            "proj.bias": rng.standard_normal(3).astype(ml_dtypes.bfloat16),
            "bn.num_batches_tracked": np.array(7),
            "index": rng.integers(0, 9, (2, 2, 2)),
            "empty": np.zeros((0, 3), np.float16),
        },
        "optimizer": {"state": {0: {"step": 3, "exp_avg": np.ones(2)}}, "param_groups": [{"betas": (0.9, 0.95)}]},
        "epoch": 12,
        "scaler": {},
        "args": Namespace(model="mae_vit_base_patch16", blr=1.5e-4, norm_pix_loss=True, resume=None),
    }


def small_files(folder) -> dict:
    """{format: path} of one small file each, written by the door itself (legacy PyTorch: by PyTorch)."""
    import torch

    weights = training_state()["model"]
    save_torch(folder / "torch-zip", weights)
    save_paddle(folder / "paddle", weights)
    save_safetensors(folder / "safetensors", weights)
    save_checkpoint(folder / "ppssl", weights, {"epoch": "1"})
    torch.save({"w": torch.ones(3)}, folder / "torch-legacy", _use_new_zipfile_serialization=False)
    return {name: folder / name for name in ("torch-zip", "torch-legacy", "paddle", "safetensors", "ppssl")}


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory: now, or the highest since `forget_peak` (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def refusal(path, content: bytes | None = None) -> str:
    """The one-line message with which `path` (holding `content`) is refused, while hardly any memory is taken."""
    if content is not None:
        path.write_bytes(content)
    forget_peak()
    before = resident()
    with pytest.raises(Refused) as caught:
        load(path)
    assert resident("VmHWM") - before < 1e8
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable() and ";" in message
    return message.removeprefix(str(path))
