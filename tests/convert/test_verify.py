"""verify passes what is right, for every family, and names the first layer of what is wrong."""
import dataclasses
import json

import cv2
import numpy as np
import pytest

from convert import verify as verification
from convert.__main__ import main
from convert.contents import read
from convert.conversion import official_weights, paddle_weights, to_paddle, write_paddle
from convert.formats import Refused, save_torch
from convert.recognise import Network
from convert.verify import FLOOR, NOISE_FACTOR, compare, fill, stage, verify
from tests.convert.networks import ENTRIES, FILES, GOLDEN, name_of, opened, random_weights, shapes_of

TINY = [e for e in ENTRIES if "tiny" in e.name]
CLASSIFIER = GOLDEN / "mae/finetune_train/checkpoint.pth"
PRETRAINED = GOLDEN / "mae/pretrain_forward_normpix/checkpoint.pth"
PICTURE = GOLDEN / "data/decode/jpeg420.jpg"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_golden_file_is_verified_in_all_its_stages(path):
    report, run = verify(path)
    assert report.passed, report.first_difference
    assert report.results and report.tensors["different"] == 0 and report.tensors["transposed"] > 0
    assert all(s.scale > 0 for s in (*report.stages, *report.results) if s.name != "mask")
    assert run.outputs["PyTorch"].keys() >= run.outputs["Paddle"].keys()


def plausible(entry) -> dict[str, np.ndarray]:
    """Random weights of a registered model that it can run with."""
    weights = {k: np.asarray(np.abs(v) + 0.5 if k.endswith("running_var") else 0.1 * v)
               for k, v in random_weights(shapes_of(entry)).items()}
    return {k: v.astype(np.int64) if k.endswith("num_batches_tracked") else v for k, v in weights.items()}


@pytest.mark.parametrize("entry", TINY, ids=lambda e: f"{e.task}-{e.name}")
def test_every_registered_family_is_verified_layer_by_layer(entry):
    """A later family is covered by being registered: it needs its table and its trial."""
    weights = plausible(entry)
    network = opened({"model": weights}, metadata=hint(entry)).main
    run = compare(network.network, official_weights(network), paddle_weights(network))
    assert all(s.ok for s in (*run.stages, *run.results))
    names, owners = {s.name for s in run.stages}, {key.rpartition(".")[0] for key in weights} - {""}
    covered = {owner for owner in owners if any(n == owner or n.startswith(f"{owner}.") or owner == f"{n}.proj" for n in names)}
    assert covered == owners


@pytest.mark.parametrize("entry", TINY, ids=lambda e: f"{e.task}-{e.name}")
def test_one_wrong_number_in_any_family_is_found_where_it_is(entry):
    weights = plausible(entry)
    floats = [key for key in weights if key.endswith(("weight", "bias")) and "decoder" not in key]
    key = floats[2 * len(floats) // 3]
    network = opened({"model": weights}, metadata=hint(entry)).main
    ours = {k: np.array(v) for k, v in paddle_weights(network).items()}
    ours[key].flat[0] += 3
    run = compare(network.network, official_weights(network), ours)
    first = next(s.name for s in (*run.stages, *run.results) if not s.ok)
    owner = key.rpartition(".")[0]
    assert first == owner or first.startswith(f"{owner}."), (key, first)


def hint(entry) -> dict[str, str]:
    return {"config": json.dumps({"model": entry.name})}


def spoiled(path, spoil=lambda weights: None, change=None, monkeypatch=None):
    """The first stage that differs when Paddle's weights or model are not what they should be."""
    main = read(path).main
    ours = fill(main.network, {k: np.array(v) for k, v in paddle_weights(main).items()}, True)
    spoil(ours)
    if change:
        build = Network.build

        def changed(self):
            model = build(self)
            change(dict(model.named_sublayers()))
            return model
        monkeypatch.setattr(Network, "build", changed)
    run = compare(main.network, fill(main.network, official_weights(main), False), ours)
    return next((s.name for s in (*run.stages, *run.results) if not s.ok), None)


@pytest.mark.parametrize("path", [CLASSIFIER, PRETRAINED], ids=name_of)
def test_a_square_matrix_that_was_not_transposed_is_caught_where_it_is(path):
    def spoil(weights):
        weights["blocks.1.attn.proj.weight"] = weights["blocks.1.attn.proj.weight"].T
    assert spoiled(path, spoil) == "blocks.1.attn.proj"


@pytest.mark.parametrize("key", ["patch_embed.proj.bias", "blocks.0.attn.qkv.bias", "blocks.1.mlp.fc2.bias", "head.bias"])
def test_a_missing_bias_is_caught_where_it_is(key):
    def spoil(weights):
        weights[key] = np.zeros_like(weights[key])
    assert spoiled(CLASSIFIER, spoil) == key.removesuffix(".bias")


@pytest.mark.parametrize("name", ["blocks.0.norm1", "blocks.0.norm2", "fc_norm"])
def test_paddles_own_epsilon_is_caught_where_it_is(name, monkeypatch):
    def change(layers):
        layers[name]._epsilon = 1e-5
    assert spoiled(CLASSIFIER, change=change, monkeypatch=monkeypatch) == name


def test_nan_never_passes():
    nan = np.array([1.0, np.nan], np.float32)
    assert not stage("x", nan, np.ones(2, np.float32), np.ones(2)).ok
    assert not stage("x", np.ones(2, np.float32), nan, np.ones(2)).ok


def test_the_band_is_what_rounding_alone_does():
    single, double = np.array([2.0, 1.0], np.float32), np.array([2.0 + 1e-6, 1.0])
    s = stage("x", single, single, double)
    assert s.band == pytest.approx(NOISE_FACTOR * 1e-6 + FLOOR * 2.0) and s.max_abs == 0


@pytest.mark.parametrize("name", ["tec/weight_convert/converted.pth", "tec/ibot_forward/checkpoint.pth"])
def test_parts_that_a_file_lacks_are_filled_with_the_same_numbers_on_both_sides(name):
    report, _ = verify(GOLDEN / name)
    assert report.passed and "decoder" in report.absent


def test_two_files_are_compared_bit_for_bit_and_by_their_results(tmp_path, capsys):
    write_paddle(tmp_path / "x.pdparams", to_paddle(read(CLASSIFIER)), False, lambda _: None)
    assert main(["verify", str(tmp_path / "x.pdparams"), str(CLASSIFIER)]) == 0         # in either order
    out = capsys.readouterr().out
    assert out.count("sha256") == 2 and "32 identical bit for bit, 0 different" in out and "PASSED" in out


def test_a_file_that_was_not_converted_from_the_other_fails_with_exit_code_1(tmp_path, capsys):
    state = {k: np.array(v) for k, v in read(CLASSIFIER).main.state.items()}
    state["blocks.1.mlp.fc1.weight"][0, 0] += 0.5
    converted = to_paddle(opened({"model": state}))
    write_paddle(tmp_path / "x.pdparams", converted, False, lambda _: None)
    assert main(["verify", str(CLASSIFIER), str(tmp_path / "x.pdparams")]) == 1
    assert "FAILED: the first stage that differs is blocks.1.mlp.fc1" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["mae/finetune_forward_cls_token/checkpoint.pth", "mae/finetune_train/checkpoint.pth"])
def test_two_files_of_one_layout_or_of_other_networks_are_refused(other):
    with pytest.raises(Refused, match="not the same tensors|both files are in PyTorch's layout"):
        verify(CLASSIFIER, GOLDEN / other)


def test_json_holds_everything_and_the_verdict(capsys):
    assert main(["verify", str(CLASSIFIER), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["passed"] and content["first_difference"] is None and len(content["files"][0]["sha256"]) == 64
    assert {f.name for f in dataclasses.fields(verification.Report)} <= set(content)
    assert set(content["stages"][0]) == {"name", "max_abs", "mean_abs", "scale", "band"}


def test_a_real_picture_is_run_and_reconstructed_by_both(tmp_path, capsys):
    out = tmp_path / "both.png"
    assert main(["verify", str(PRETRAINED), "--image", str(PICTURE), "--picture", str(out)]) == 0
    assert "images [1, 3, 16, 16]" in capsys.readouterr().out
    picture = cv2.imread(str(out))
    rows = [picture[16:16 + 128], picture[16 + 132:16 + 260]]
    assert picture is not None and np.abs(rows[0].astype(int) - rows[1]).max() <= 1 and rows[0].std() > 10


@pytest.mark.parametrize("arguments, reason", [
    (["--image", "nowhere.jpg"], "no readable picture"), (["--picture", "x.png"], "predicts no pixels"),
    (["--model", "vit_base_patch16"], "another size")])
def test_what_cannot_be_shown_is_refused_in_one_line(arguments, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["verify", str(CLASSIFIER), *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert reason in line and not list(tmp_path.iterdir())


def test_half_precision_weights_are_compared_in_single_precision(tmp_path):
    state = {k: v.astype(np.float16) for k, v in read(CLASSIFIER).main.state.items()}
    save_torch(tmp_path / "half.pth", {"model": state})
    assert verify(tmp_path / "half.pth")[0].passed


def test_without_pytorch_the_fix_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Refused, match="pip install torch"):
        verify(CLASSIFIER)
