"""Files written open in the tools they are for, and come back bit for bit."""

import argparse
import json

import numpy as np
import paddle
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.formats import Refused, load, save_checkpoint, save_paddle, save_safetensors, save_torch
from tests.convert.formats_helpers import DTYPES, same, training_state
from tests.convert.test_formats_reading import BFLOAT16, as_plain

WRITE_TREE = {"torch-zip": save_torch, "paddle": save_paddle}
WRITE_FLAT = {
    "safetensors": save_safetensors,
    "ppssl": lambda path, tensors, overwrite: save_checkpoint(path, tensors, {"step": "3"}, overwrite),
}
EVERY_FORMAT = pytest.mark.parametrize("name", [*WRITE_TREE, *WRITE_FLAT])


@st.composite
def arrays(draw):
    """Any bits, 0 to 4 dimensions, sometimes empty, sometimes a transposed or strided view."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=4))
    size = int(np.prod(shape, dtype=int))
    bits = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    if dtype == bool:
        bits = bytes(byte & 1 for byte in bits)
    array = np.frombuffer(bits, dtype).reshape(shape) if size else np.zeros(shape, dtype)
    return draw(st.sampled_from([array, array.T, array[..., ::-1] if shape else array]))


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | NAMES
TREES = st.recursive(
    arrays() | SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(NAMES | st.integers(), inner, max_size=3)
    | st.dictionaries(st.sampled_from(["lr", "model"]), inner).map(lambda options: argparse.Namespace(**options)),
    max_leaves=8,
)
ONE_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_paddle_pair(value) -> bool:
    """(name, array): what Paddle reads as one tensor, by its own rule."""
    return type(value) is tuple and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], np.ndarray)


def has_pair(tree) -> bool:
    inner = vars(tree) if isinstance(tree, argparse.Namespace) else tree
    items = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, (list, tuple)) else ()
    return is_paddle_pair(tree) or any(map(has_pair, items))


@pytest.mark.parametrize("name", WRITE_TREE)
@ONE_FOLDER
@given(tree=TREES)
def test_any_tree_survives(tmp_path, name, tree):
    tree = {"tree": tree}
    if name == "paddle" and has_pair(tree):
        return
    WRITE_TREE[name](tmp_path / "file", tree, overwrite=True)
    loaded = load(tmp_path / "file")
    assert loaded.format == name and same(loaded.tree, tree)


@pytest.mark.parametrize("name", WRITE_FLAT)
@ONE_FOLDER
@given(tensors=st.dictionaries(NAMES, arrays(), max_size=4))
def test_any_flat_dict_survives(tmp_path, name, tensors):
    WRITE_FLAT[name](tmp_path / "file", tensors, overwrite=True)
    loaded = load(tmp_path / "file")
    assert loaded.format == name and same(loaded.tree, tensors)
    with safetensors.safe_open(tmp_path / "file", "np") as other:
        assert set(other.keys()) == set(tensors)


@ONE_FOLDER
@given(tree=TREES)
def test_pytorch_reads_any_tree(tmp_path, tree):
    save_torch(tmp_path / "file", tree, overwrite=True)
    with torch.serialization.safe_globals([argparse.Namespace]):
        for mapped in (False, True):
            assert same(as_plain(torch.load(tmp_path / "file", weights_only=True, mmap=mapped)), tree)


def test_pytorch_gets_contiguous_tensors(tmp_path):
    save_torch(tmp_path / "file", {"w": np.ones((4, 3), np.float32).T, "e": np.zeros((2, 0, 3))})
    state = torch.load(tmp_path / "file", weights_only=True)
    assert state["w"].is_contiguous() and state["e"].stride() == torch.zeros(2, 0, 3).stride()
    torch.nn.Linear(4, 3, bias=False).load_state_dict({"weight": state["w"]})


def test_paddle_reads_flat_and_nested_trees(tmp_path):
    tree = training_state()
    save_paddle(tmp_path / "file", tree)
    read = paddle.load(str(tmp_path / "file"))
    weights = {name: as_numpy(tensor) for name, tensor in read["model"].items()}
    assert same(weights, tree["model"]) and (read["epoch"], read["args"]) == (tree["epoch"], tree["args"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paddle_gets_every_dtype(tmp_path, dtype):
    tensors = {"s": np.array(1).astype(dtype), "m": np.arange(6).astype(dtype).reshape(2, 3).T}
    save_paddle(tmp_path / "file", tensors)
    assert same({name: as_numpy(tensor) for name, tensor in paddle.load(str(tmp_path / "file")).items()}, tensors)


def as_numpy(tensor) -> np.ndarray:
    array = tensor.numpy()
    return array.view(BFLOAT16) if array.dtype == np.uint16 else array


def test_paddle_layer_takes_the_weights(tmp_path):
    layer = paddle.nn.Linear(2, 3)
    tensors = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2).T, "bias": np.ones(3, np.float32)}
    save_paddle(tmp_path / "file", tensors)
    missing, unexpected = layer.set_state_dict(paddle.load(str(tmp_path / "file")))
    assert (missing, unexpected) == ([], []) and same(layer.weight.numpy(), tensors["weight"])


def test_safetensors_tools_read_both_kinds(tmp_path):
    tensors = {"b": np.ones(3, BFLOAT16), "i": np.array(True), "a": np.arange(6.0, dtype="f4").reshape(2, 3).T}
    save_safetensors(tmp_path / "plain", tensors, {"who": "ü"})
    save_checkpoint(tmp_path / "own", tensors, {"who": "ü"})
    for path in (tmp_path / "plain", tmp_path / "own"):
        assert all(same(as_plain(tensor), tensors[name]) for name, tensor in safetensors.torch.load_file(path).items())
        with safetensors.safe_open(path, "pt") as other:
            assert other.metadata()["who"] == load(path).metadata["who"] == "ü"
    assert all(array.flags.aligned for array in load(tmp_path / "own").tree.values())


def test_own_metadata_comes_back_without_the_seal(tmp_path):
    save_checkpoint(tmp_path / "file", {}, {"config": json.dumps({"lr": 0.1})})
    assert load(tmp_path / "file").metadata == {"config": '{"lr": 0.1}'}
    with safetensors.safe_open(tmp_path / "file", "np") as other:
        assert other.metadata()["format"] == "ppssl" and len(other.metadata()["sha256"]) == 64


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_torch(tmp_path / name, training_state())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_pytorch_to_paddle_to_own_to_pytorch_is_bit_identical(tmp_path):
    state = training_state()["model"]
    save_torch(tmp_path / "1", state)
    save_paddle(tmp_path / "2", load(tmp_path / "1").tree)
    save_checkpoint(tmp_path / "3", load(tmp_path / "2").tree, {})
    save_torch(tmp_path / "4", load(tmp_path / "3").tree)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "4").read_bytes()


@pytest.mark.parametrize("write", WRITE_TREE.values(), ids=list(WRITE_TREE))
@pytest.mark.parametrize("value", [np.zeros(2, "u2"), np.array(["x"]), np.zeros(2, object), object(), {1}, b"x", 1j])
def test_values_a_format_cannot_hold_are_named_and_nothing_is_written(tmp_path, write, value):
    with pytest.raises(Refused, match=r"cannot write tree\.model\[0\]"):
        write(tmp_path / "file", {"model": [value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITE_FLAT.values(), ids=list(WRITE_FLAT))
@pytest.mark.parametrize("tensors", [
    {"__metadata__": np.ones(1)}, {1: np.ones(1)}, {"\ud800": np.ones(1)}, {"w": np.ones(1, np.complex128)}, {"w": 1.0},
], ids=repr)
def test_flat_formats_refuse_bad_names_and_types(tmp_path, write, tensors):
    with pytest.raises(Refused, match="cannot write"):
        write(tmp_path / "file", tensors, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metadata", [{"sha256": "x"}, {"format": "x"}, {"epoch": 3}], ids=repr)
def test_own_metadata_must_be_text_under_free_names(tmp_path, metadata):
    with pytest.raises(Refused, match="metadata"):
        save_checkpoint(tmp_path / "file", {}, metadata)


@EVERY_FORMAT
def test_an_existing_file_is_replaced_only_on_request(tmp_path, name):
    write = (WRITE_TREE | WRITE_FLAT)[name]
    write(tmp_path / "file", {"w": np.zeros(1)}, overwrite=False)
    with pytest.raises(Refused, match="exists already"):
        write(tmp_path / "file", {"w": np.ones(1)}, overwrite=False)
    assert load(tmp_path / "file").tree["w"] == 0
    write(tmp_path / "file", {"w": np.ones(1)}, overwrite=True)
    assert load(tmp_path / "file").tree["w"] == 1 and len(list(tmp_path.iterdir())) == 1


@EVERY_FORMAT
def test_a_file_can_be_rewritten_from_its_own_views(tmp_path, name):
    write = (WRITE_TREE | WRITE_FLAT)[name]
    write(tmp_path / "file", {"w": np.arange(6.0).reshape(2, 3)}, overwrite=False)
    write(tmp_path / "file", {"w": load(tmp_path / "file").tree["w"].T}, overwrite=True)
    assert same(load(tmp_path / "file").tree["w"], np.arange(6.0).reshape(2, 3).T)
