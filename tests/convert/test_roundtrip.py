"""What goes to Paddle and back is what it was: every byte, type, key and order, for every model and format."""
import json
import zlib
from argparse import Namespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.contents import read
from convert.conversion import to_paddle, to_torch, write_paddle, write_torch
from convert.formats import Refused, load, save_paddle, save_torch
from convert.layout import relayout, transposed_keys
from convert.recipe import decode, encode
from ppssl.models.mae import MaskedAutoencoderViT
from tests.convert.formats_helpers import same
from tests.convert.networks import (
    ENTRIES, FILES, GOLDEN, as_opened, name_of, opened, random_weights, same_memory, shapes_of, there_and_back, weightless,
)

FORMATS = (".pdparams", ".safetensors", ".ppssl")
DTYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]


def unheard(_: int) -> None:
    pass


def through_files(path, folder, suffix):
    """The tree that comes back through a converted file of that format."""
    write_paddle(folder / f"x{suffix}", to_paddle(read(path)), True, unheard)
    write_torch(folder / "back.pth", to_torch(read(folder / f"x{suffix}"))[0], True, unheard)
    return load(folder / "back.pth").tree


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.task}-{e.name}")
def test_the_layout_of_every_registered_model_is_a_bijection(entry):
    weights = weightless(shapes_of(entry))
    converted = to_paddle(opened({"model": weights}))
    network = opened({"model": weights}).main.network
    assert list(converted.tensors) == [f"model.{key}" for key in weights]
    for key, value in weights.items():
        stored = converted.tensors[f"model.{key}"]
        assert stored.shape == (value.shape[::-1] if key in network.linear else value.shape)
    back = there_and_back({"model": weights})
    assert list(back) == ["model"] and list(back["model"]) == list(weights)
    assert all(same_memory(back["model"][key], value) for key, value in weights.items())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.task}-{e.name}")
def test_what_the_paddle_model_itself_saves_comes_back_in_official_order(entry):
    """Without any record of a conversion: a model trained here."""
    weights = weightless(shapes_of(entry))
    linear = opened({"model": weights}).main.network.linear
    paddle = dict(reversed(relayout(weights, linear).items()))
    tree, notes = to_torch(opened({f"model.{k}": v for k, v in paddle.items()}, "ppssl"))
    assert list(tree["model"]) == list(weights) and not notes
    assert all(same_memory(tree["model"][key], value) for key, value in weights.items())


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("manifest*.json")), ids=name_of)
def test_every_full_size_manifest_round_trips(path):
    manifest = json.loads(path.read_text())
    weights = {key: np.broadcast_to(np.zeros((), dtype), shape) for key, (shape, dtype) in manifest.items()}
    back = there_and_back({"model": weights})["model"]
    assert list(back) == list(manifest) and all(same_memory(back[key], weights[key]) for key in manifest)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_golden_file_round_trips_byte_for_byte(path, tmp_path):
    original = load(path).tree
    suffix = FORMATS[zlib.crc32(name_of(path).encode()) % len(FORMATS)]      # each file through one format, all formats covered
    assert same(through_files(path, tmp_path, suffix), original)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["bootmae/resume_checkpoint/checkpoint.pth", "tec/pretrain_forward_plain/base_checkpoint.pth",
                                  "byol/tiny_train/checkpoint_epoch1.pth", "fastconvmae/easycv_pretrain_forward/checkpoint.pth"])
def test_training_states_and_wrapped_files_round_trip_in_every_format(name, suffix, tmp_path):
    assert same(through_files(GOLDEN / name, tmp_path, suffix), load(GOLDEN / name).tree)


@st.composite
def states(draw):
    """An official file of an MAE of random sizes, its tensors of random types, among other entries."""
    heads = draw(st.integers(1, 3))
    sizes = {"img_size": (4 * draw(st.integers(1, 3)), 8), "patch_size": 4, "embed_dim": 4 * heads * draw(st.integers(1, 2)),
             "depth": draw(st.integers(1, 3)), "num_heads": heads, "decoder_embed_dim": draw(st.sampled_from([4, 8, 12])),
             "decoder_depth": draw(st.integers(1, 2)), "decoder_num_heads": 2, "mlp_ratio": draw(st.sampled_from([0.5, 1, 3.5, 4]))}
    from paddle import LazyGuard

    from convert.layout import official_shapes

    with LazyGuard():
        weights = random_weights(official_shapes(MaskedAutoencoderViT(**sizes)), draw(st.integers(0, 99)))
    types = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=5))
    weights = {key: value.astype(types[i % len(types)]) for i, (key, value) in enumerate(weights.items())}
    keys = draw(st.permutations(list(weights)))
    beside = draw(st.dictionaries(st.sampled_from(["epoch", "note", "counter", "extra", "flag"]), st.one_of(
        st.integers(), st.floats(), st.text(max_size=5), st.none(), st.booleans(), st.just(np.array(3)), st.just((1, [2.5, None])),
        st.just({1: np.zeros((0, 3), np.int8), "a.b": np.float16([1, 2])}), st.just(Namespace(lr=1e-3, betas=(0.9, 0.95))))))
    return {**beside, "model": {key: weights[key] for key in keys}}


@given(tree=states(), suffix=st.sampled_from(FORMATS))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_size_type_order_and_company_round_trips(tree, suffix, tmp_path):
    save_torch(tmp_path / "x.pth", tree, overwrite=True)
    assert same(through_files(tmp_path / "x.pth", tmp_path, suffix), load(tmp_path / "x.pth").tree)


def test_paddle_loads_a_converted_file_into_its_model(tmp_path):
    import paddle

    entry = next(e for e in ENTRIES if e.name == "vit_tiny_patch4")
    weights = random_weights(shapes_of(entry))
    write_paddle(tmp_path / "x.pdparams", to_paddle(opened({"model": weights})), True, unheard)
    model = entry.build()
    missing, _ = model.set_state_dict(paddle.load(str(tmp_path / "x.pdparams")))
    assert not missing
    own = {key: value.numpy() for key, value in model.state_dict().items()}
    assert same(relayout(own, transposed_keys(model)), weights)


def test_pytorch_loads_what_comes_back_strictly(tmp_path):
    import torch

    tree = there_and_back(load(GOLDEN / "mae/resume_checkpoint/checkpoint.pth").tree)
    write_torch(tmp_path / "back.pth", tree, True, unheard)
    with torch.serialization.safe_globals([Namespace]):
        ours, theirs = (torch.load(p, weights_only=True) for p in (tmp_path / "back.pth", GOLDEN / "mae/resume_checkpoint/checkpoint.pth"))
    assert list(ours) == list(theirs) and ours["args"] == theirs["args"]
    assert all(torch.equal(ours["model"][key], theirs["model"][key]) for key in theirs["model"])


def test_safetensors_for_pytorch_hold_the_weights_alone(tmp_path):
    weights = random_weights(shapes_of(next(e for e in ENTRIES if e.name == "vit_tiny_patch4")))
    found = as_opened(to_paddle(opened({"epoch": 3, "model": weights})))
    write_torch(tmp_path / "x.safetensors", to_torch(found)[0], True, unheard)
    assert same(load(tmp_path / "x.safetensors").tree, weights)


def test_a_passl_training_file_gives_the_official_form_and_says_what_is_left_out(tmp_path):
    official = load(GOLDEN / "mae/linprobe_train/checkpoint.pth").tree["model"]
    linear = opened({"model": official}).main.network.linear
    names = {"running_mean": "_mean", "running_var": "_variance"}
    passl = {".".join(names.get(part, part) for part in key.split(".")): value for key, value in relayout(official, linear).items()
             if not key.endswith("num_batches_tracked")}
    save_paddle(tmp_path / "x.pd", {"model": passl, "optimizer": {"state": {}}, "epoch": 5})
    tree, notes = to_torch(read(tmp_path / "x.pd"))
    assert tree["epoch"] == 5 and notes == ("left out: optimizer, which has no PyTorch form",)
    assert same(tree["model"], official | {"head.0.num_batches_tracked": np.array(0)})


def test_a_file_in_the_layout_that_was_asked_for_is_refused():
    official = opened({"model": weightless(shapes_of(ENTRIES[0]))})
    with pytest.raises(Refused, match="PyTorch's layout already"):
        to_torch(official)
    with pytest.raises(Refused, match="Paddle's layout already"):
        to_paddle(as_opened(to_paddle(official)))


def test_a_recipe_that_does_not_fit_its_tensors_is_refused():
    recipe, tensors = encode({"a": np.ones(3), "b": [1, (2, None)]}, lambda path, value: (".".join(map(str, path)), False))
    assert same(decode(recipe, tensors), {"a": np.ones(3), "b": [1, (2, None)]})
    for damaged in (recipe.replace('"a"', '"z"'), recipe[:-9], "[]", recipe.replace('"version": 1', '"version": 9')):
        with pytest.raises(Refused):
            decode(damaged, {})
