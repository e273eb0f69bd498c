"""python -m convert: what it writes and says, its exit codes, and that a refusal is one line and leaves nothing behind."""
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main
from convert.contents import read
from convert.conversion import to_paddle, to_torch, write_paddle
from convert.formats import load, save_checkpoint, save_safetensors, save_torch
from convert.progress import LARGE, Progress
from tests.convert.formats_helpers import same
from tests.convert.networks import ENTRIES, GOLDEN, opened, random_weights, shapes_of

CLASSIFIER = GOLDEN / "mae/finetune_train/checkpoint.pth"
RESUME = GOLDEN / "bootmae/resume_checkpoint/checkpoint.pth"
TINY = next(e for e in ENTRIES if e.name == "mae_vit_tiny_patch4")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *arguments) -> str:
    """The one line with which a command is refused, having written nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    [line] = err.strip().splitlines()
    assert line.startswith("error: ") and not out
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    return line


@pytest.mark.parametrize("output, format", [("x.pdparams", "paddle"), ("x.safetensors", "safetensors"), ("x.ckpt", "ppssl")])
def test_the_name_decides_what_to_paddle_writes(output, format, capsys):
    assert main(["to-paddle", str(CLASSIFIER), "-o", output]) == 0
    assert load(output).format == format and "32 tensors" in capsys.readouterr().out
    assert main(["to-torch", output, "-o", "back.pth"]) == 0
    assert same(load("back.pth").tree, load(CLASSIFIER).tree)


def test_a_training_state_becomes_a_run_under_either_name(capsys):
    for output in ("run.safetensors", "run.ckpt"):
        assert main(["to-paddle", str(RESUME), "-o", output]) == 0
        found = load(output)
        assert found.format == "ppssl" and {"state", "config", "recipe"} <= set(found.metadata)
    assert "config" in read("run.ckpt").loaded.metadata and not capsys.readouterr().err


def test_to_torch_writes_safetensors_by_suffix():
    main(["to-paddle", str(CLASSIFIER), "-o", "x.pdparams"])
    assert main(["to-torch", "x.pdparams", "-o", "x.safetensors"]) == 0
    assert same(load("x.safetensors").tree, load(CLASSIFIER).tree["model"])


def test_what_safetensors_cannot_hold_is_said(capsys):
    main(["to-paddle", str(RESUME), "-o", "run.ckpt"])
    assert main(["to-torch", "run.ckpt", "-o", "x.safetensors"]) == 0
    assert "note: left out: optimizer, epoch, scaler, args, model_ema; safetensors" in capsys.readouterr().err


def test_an_existing_output_is_replaced_only_when_told(capsys):
    Path("x.pdparams").write_text("precious")
    assert "exists already" in refused(capsys, "to-paddle", CLASSIFIER, "-o", "x.pdparams")
    assert main(["to-paddle", str(CLASSIFIER), "-o", "x.pdparams", "--overwrite"]) == 0 and load("x.pdparams").format == "paddle"


def test_inspect_says_what_is_inside_and_what_to_do_next(capsys):
    weights = random_weights(shapes_of(TINY))
    save_torch("full.pth", {"model": weights, "epoch": 7, "args": Namespace(model="mae_vit_tiny_patch4")})
    save_torch("encoder.pth", {"model": {k: v for k, v in weights.items() if not k.startswith(("decoder", "mask_token"))}})
    assert main(["inspect", "full.pth"]) == 0
    full = capsys.readouterr().out
    assert "encoder, final norm, decoder, args" in full and "epoch          7" in full and "mae_vit_tiny_patch4" in full
    assert "python main_finetune.py --model vit_tiny_patch4 --finetune full.pth" in full
    assert "python -m convert to-paddle full.pth -o full.pdparams" in full
    assert main(["inspect", "encoder.pth"]) == 0
    assert "not inside     decoder, EMA, optimizer, args" in capsys.readouterr().out


@pytest.mark.parametrize("name, words", [
    ("fastconvmae/easycv_pretrain_forward", ["EasyCV pretraining names", "the same keys as FastConvMAE", "fusion of stages 1 and 2"]),
    ("tec/pretrain_forward_plain/base", ["iBOT names", "teacher", "3 tensors (first module.backbone.masked_embed)"]),
    ("bootmae/resume_checkpoint", ["EMA, optimizer, args", "model_ema"]), ("byol/tiny_train", ["int64", "BYOL pretraining network"])])
def test_inspect_knows_the_publishers_files(name, words, capsys):
    path = GOLDEN / (f"{name}_checkpoint.pth" if name.endswith("base") else f"{name}/checkpoint.pth")
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words), out


def test_of_byols_networks_the_next_step_is_the_linear_evaluation(capsys):
    entry = next(e for e in ENTRIES if e.name == "byol_resnet_tiny")
    save_torch("byol.pth", {"model": random_weights(shapes_of(entry))})
    assert main(["inspect", "byol.pth"]) == 0
    assert "python main_linprobe.py --model resnet_tiny --finetune byol.pth" in capsys.readouterr().out


def save_legacy(variance: float) -> None:
    """BYOL's legacy file with a tiny backbone whose running variances are all of that value."""
    shapes = {k: s for k, s in shapes_of(next(e for e in ENTRIES if e.name == "resnet_tiny")).items() if not k.startswith("fc.")}
    weights = {k: np.full_like(v, variance) if k.endswith("running_var") else v for k, v in random_weights(shapes).items()}
    renamed = {f"module.t{i}": value for i, value in enumerate(weights.values())} | {"module.z": np.zeros(3, np.float32)}
    save_torch("legacy.pth.tar", {"online_backbone": renamed, "target_backbone": renamed, "predictor": {"a": np.ones(2)}})


def test_a_mapping_by_order_that_does_not_compute_is_refused(capsys):
    save_legacy(variance=-1.0)
    assert main(["to-paddle", "legacy.pth.tar", "-o", "run.ckpt"]) == 2
    assert "matched by order, and bn1 differs" in capsys.readouterr().err and not Path("run.ckpt").exists()


def test_byols_legacy_file_goes_there_and_back_and_its_mapping_is_printed_and_proven(capsys):
    save_legacy(variance=1.0)
    assert main(["to-paddle", "legacy.pth.tar", "-o", "run.ckpt"]) == 0
    out = capsys.readouterr().out
    assert "  module.t0 -> conv1.weight\n  module.t1 -> bn1.weight\n" in out and "  module.z -> carried along\n" in out
    assert "both frameworks compute the same with it" in out
    assert main(["to-torch", "run.ckpt", "-o", "back.pth.tar"]) == 0
    assert same(load("back.pth.tar").tree, load("legacy.pth.tar").tree)
    assert main(["inspect", "legacy.pth.tar"]) == 0
    assert "main_linprobe.py --model resnet_tiny --finetune legacy.pth.tar" in capsys.readouterr().out


def test_inspect_counts_types_and_numbers_that_are_not_finite_and_prints_json(capsys):
    weights = random_weights(shapes_of(TINY))
    weights |= {key: value.astype(np.float16) for key, value in weights.items() if key.startswith("decoder")}
    weights["norm.bias"][:3] = np.nan, np.inf, -np.inf
    save_torch("x.pth", {"model": weights})
    assert main(["inspect", "x.pth", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nonfinite"] == {"model.norm.bias": 3} and set(found["dtypes"]) == {"float16", "float32"}
    assert found["numbers"] == sum(v.size for v in weights.values()) and len(found["sha256"]) == 64


def test_a_file_of_unknown_tensors_can_still_be_inspected(capsys):
    save_torch("x.pth", {"conv.weight": np.ones((3, 3), np.float32)})
    assert main(["inspect", "x.pth"]) == 0
    assert "not recognised: x.pth: its 1 tensors" in capsys.readouterr().out


def test_the_next_command_of_a_run_goes_back_to_pytorch_and_on_in_paddle(capsys):
    from ppssl import config
    from ppssl.methods.mae import MAE

    flat = config.build("pretrain", MAE, "mae_vit_tiny_patch4", {}).flat()
    state = {"progress": {"epoch": 1, "step": 30}, "optimizer_steps": 0, "world": 1, "scaler": None}
    network = opened({"model": random_weights(shapes_of(TINY))})
    save_checkpoint("run.safetensors", to_paddle(network).tensors, {"state": json.dumps(state), "config": json.dumps(flat)})
    assert main(["inspect", "run.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "python -m convert to-torch run.safetensors -o run.pth" in out
    assert "python main_pretrain.py --model mae_vit_tiny_patch4 --resume run.safetensors" in out
    assert "done           1 epochs and 0 batches, step 30" in out


def test_numbers_that_are_not_finite_are_converted_with_a_warning(capsys):
    weights = random_weights(shapes_of(TINY))
    weights["blocks.1.mlp.fc1.weight"][0, 0] = np.nan
    save_torch("x.pth", {"model": weights})
    assert main(["to-paddle", "x.pth", "-o", "x.pdparams"]) == 0
    assert "1 numbers are NaN or infinite, the first in model.blocks.1.mlp.fc1.weight" in capsys.readouterr().err


# --- refusals


def hostile(canary: str):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)
    return Attack()


@pytest.mark.parametrize("command", ["to-paddle", "to-torch", "inspect", "verify"])
@pytest.mark.parametrize("nest", [lambda a: a, lambda a: {"model": {"w": a}}, lambda a: {"args": [(a,)]}], ids=["bare", "weight", "args"])
def test_a_file_that_would_run_code_is_refused_by_every_command(command, nest, capsys):
    import torch

    output = ["-o", "out"] if command.startswith("to-") else []
    Path("x.pdparams").write_bytes(pickle.dumps(nest(hostile("canary")), 4))
    torch.save(nest(hostile("canary")), "x.pth")
    torch.save(nest(hostile("canary")), "old.pth", _use_new_zipfile_serialization=False)
    for name in ("x.pdparams", "x.pth", "old.pth"):
        assert "system" in refused(capsys, command, name, *output)
    assert not Path("canary").exists()


def whole() -> bytes:
    return CLASSIFIER.read_bytes()


@pytest.mark.parametrize("content, reason", [
    (lambda: b"", "is empty"), (lambda: b"epoch: 3\n", "a text"), (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG image"),
    (lambda: whole()[:-100], "truncated"), (lambda: whole()[:5000], "truncated"), (lambda: b"\xff" * 8 + b"{" + bytes(90), "absurd"),
    (lambda: bytes(99), "not a checkpoint")], ids=["empty", "text", "picture", "cut", "cut in two", "header", "zeros"])
@pytest.mark.parametrize("command", ["to-paddle", "verify"])
def test_what_is_no_checkpoint_or_damaged_is_refused(command, content, reason, capsys):
    Path("x.pth").write_bytes(content())
    output = ["-o", "out"] if command == "to-paddle" else []
    assert reason in refused(capsys, command, "x.pth", *output)


def test_a_flipped_bit_in_an_own_file_is_refused(capsys):
    main(["to-paddle", str(CLASSIFIER), "-o", "x.ckpt"])
    capsys.readouterr()
    content = bytearray(Path("x.ckpt").read_bytes())
    content[len(content) // 2] ^= 4
    Path("x.ckpt").write_bytes(content)
    assert "checksum" in refused(capsys, "to-torch", "x.ckpt", "-o", "out.pth")


def test_tensors_of_no_network_half_a_network_and_another_size_are_refused(capsys):
    weights = random_weights(shapes_of(TINY))
    save_torch("unknown.pth", {"conv.weight": np.ones((3, 3), np.float32)})
    save_torch("half.pth", {"model": {key: value for key, value in weights.items() if not key.startswith("blocks.2.")}})
    save_torch("whole.pth", {"model": weights})
    assert "no known family" in refused(capsys, "to-paddle", "unknown.pth", "-o", "out")
    assert "no whole network; the closest is MAE pretraining network" in refused(capsys, "to-paddle", "half.pth", "-o", "out")
    wrong = refused(capsys, "to-paddle", "whole.pth", "-o", "out", "--model", "mae_vit_base_patch16")
    assert "another size than MAE pretraining network mae_vit_base_patch16" in wrong and "choose the --model" in wrong
    assert "did you mean" in refused(capsys, "inspect", "whole.pth", "--model", "mae_vit_tiny_patch5")
    main(["to-paddle", "whole.pth", "-o", "x.pdparams"])
    capsys.readouterr()
    assert "another size" in refused(capsys, "to-torch", "x.pdparams", "-o", "out", "--model", "mae_vit_base_patch16")


@pytest.mark.parametrize("arguments, reason", [
    (["to-paddle", "nowhere.pth", "-o", "out"], "check the path"), (["to-paddle", CLASSIFIER], "-o/--output"),
    (["to-paddle", CLASSIFIER, "-o", "nowhere/out"], "folder does not exist"), (["to-paddle", CLASSIFIER, "-o", "file/out"], "is a file"),
    (["to-paddle", CLASSIFIER, "-o", "."], "is a folder"), (["to-paddle", "file", "-o", "file"], "is the input itself"),
    (["to-torch", CLASSIFIER, "-o", "out.pth"], "PyTorch's layout already"), (["train"], "invalid choice"), ([], "required")])
def test_a_request_that_makes_no_sense_is_refused(arguments, reason, capsys):
    Path("file").write_text("x")
    assert reason in refused(capsys, *arguments)


def test_a_full_disk_leaves_nothing_behind(capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        line = refused(capsys, "to-paddle", CLASSIFIER, "-o", "x.pdparams")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert "largest file size" in line


@pytest.mark.parametrize("metadata", [{"recipe": "[" * 100_000}, {"recipe": '{"version": 1, "tree": ["tensor", "nowhere", true]}'},
                                      {"state": "{}", "config": "{}"}, {"state": "[", "config": "["}])
def test_a_strangers_own_file_with_nonsense_inside_is_refused(metadata, capsys):
    converted = to_paddle(read(CLASSIFIER))
    save_checkpoint("x.ckpt", converted.tensors, metadata)
    assert refused(capsys, "to-torch", "x.ckpt", "-o", "out.pth")


def test_the_command_itself_answers_with_its_exit_code():
    def run(*arguments):
        env = {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")} | {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run([sys.executable, "-m", "convert", *map(str, arguments)], capture_output=True, text=True, timeout=120, env=env)
    done = run("to-paddle", CLASSIFIER, "-o", "x.pdparams")
    assert done.returncode == 0 and not done.stderr and "verify" in done.stdout
    again = run("to-paddle", CLASSIFIER, "-o", "x.pdparams")
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and not again.stdout


# --- large files


def test_progress_is_told_for_large_files_alone(capsys):
    source = load(CLASSIFIER)
    for total in (LARGE - 1, LARGE):
        progress = Progress(total, source)
        for _ in range(8):
            progress(total // 8)
    assert capsys.readouterr().err == "".join(f"{quarter:3d} % of 105 MB\n" for quarter in (25, 50, 75, 100))


MEASURE = """
import ppssl, paddle, re, sys
from convert.__main__ import main
def kib(name):
    return int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")             # the peak counts from here
before = kib("VmRSS")
assert main(["to-paddle", "x.pth", "-o", "x" + sys.argv[1]]) == 0
assert main(["to-torch", "x" + sys.argv[1], "-o", "back.pth"]) == 0
print((kib("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors", ".ckpt"])
def test_conversion_takes_far_less_memory_than_the_tensors(suffix):
    entry = next(e for e in ENTRIES if e.name == "vit_base_patch16")
    weights = {key: np.zeros(shape, np.float32) for key, shape in shapes_of(entry).items()}
    save_torch("x.pth", {"model": weights})
    env = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", MEASURE, suffix], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout.split()[-1]) < 0.5 * sum(v.nbytes for v in weights.values())


def test_safetensors_of_pytorch_are_told_from_paddles_by_their_shapes():
    state = load(CLASSIFIER).tree["model"]
    save_safetensors("torch.safetensors", state)
    write_paddle(Path("paddle.safetensors"), to_paddle(read("torch.safetensors")), False, lambda _: None)
    assert same(to_torch(read("paddle.safetensors"))[0], state)
