"""Weights for a model at hand come out of any file, whoever wrote it and in whatever layout."""
from pathlib import Path

import numpy as np
import pytest

from convert.contents import read
from convert.conversion import to_paddle, write_paddle
from convert.formats import Refused, load, save_paddle, save_safetensors, save_torch
from convert.layout import relayout
from convert.weights import read_weights
from tests.convert.formats_helpers import same
from tests.convert.networks import ENTRIES, GOLDEN, opened, random_weights, shapes_of

ENTRY = next(e for e in ENTRIES if e.name == "vit_tiny_patch4")


@pytest.fixture(scope="module")
def model():
    return ENTRY.build()


@pytest.fixture(scope="module")
def official():
    return random_weights(shapes_of(ENTRY))


@pytest.fixture(scope="module")
def paddle(official):
    return relayout(official, opened({"model": official}).main.network.linear)


WRITERS = {
    "x.pth": lambda path, official, paddle: save_torch(path, {"model": official, "epoch": 3}),
    "flat.pth": lambda path, official, paddle: save_torch(path, official),
    "ddp.pth": lambda path, official, paddle: save_torch(path, {"state_dict": {f"module.{k}": v for k, v in official.items()}}),
    "backbone.pth": lambda path, official, paddle: save_torch(path, {"state_dict": {
        (f"head.fc_cls.{k[5:]}" if k.startswith("head.") else f"backbone.{k}"): v for k, v in official.items()}}),
    "torch.safetensors": lambda path, official, paddle: save_safetensors(path, official),
    "paddle.safetensors": lambda path, official, paddle: save_safetensors(path, paddle),
    "x.pdparams": lambda path, official, paddle: save_paddle(path, paddle),
    "passl.pd": lambda path, official, paddle: save_paddle(path, {"model": paddle, "epoch": 3}),
    "c.pdparams": lambda path, official, paddle: write_paddle(path, to_paddle(opened({"model": official})), False, lambda _: None),
    "c.safetensors": lambda path, official, paddle: write_paddle(path, to_paddle(opened({"model": official})), False, lambda _: None),
    "c.ckpt": lambda path, official, paddle: write_paddle(path, to_paddle(opened({"model": official})), False, lambda _: None),
}


@pytest.mark.parametrize("name", WRITERS)
def test_any_file_gives_the_models_own_names_and_layout(name, model, official, paddle, tmp_path):
    WRITERS[name](tmp_path / name, official, paddle)
    found = {key: np.ascontiguousarray(value) for key, value in read_weights(tmp_path / name, model).items() if key in paddle}
    assert same(dict(sorted(found.items())), dict(sorted((k, np.ascontiguousarray(v)) for k, v in paddle.items())))


def test_an_average_is_taken_where_it_is_asked_for():
    path = GOLDEN / "bootmae/pretrain_forward/checkpoint.pth"
    network = read(path).main.network.build()
    online, average = read_weights(path, network), read_weights(path, network, ("model_ema",))
    assert online.keys() == average.keys() and not same(online["norm.bias"], average["norm.bias"])


def test_the_average_of_a_converted_run_has_its_official_name_too(tmp_path):
    path = GOLDEN / "bootmae/resume_checkpoint/checkpoint.pth"
    write_paddle(tmp_path / "run", to_paddle(read(path)), False, lambda _: None)
    network = read(path).main.network.build()
    assert same(read_weights(tmp_path / "run", network, ("model_ema",))["norm.bias"], load(path).tree["model_ema"]["norm.bias"])


def test_a_file_without_weights_is_refused(tmp_path, model):
    save_torch(tmp_path / "x.pth", {"epoch": 3, "model": {}})
    with pytest.raises(Refused, match="holds no weights"):
        read_weights(Path(tmp_path / "x.pth"), model)
