"""Networks recognised once are looked up afterwards."""
import dataclasses

import pytest

from convert.layout import official_shapes
from convert.recognise import recognise
from convert.remembered import entry_of, from_text, remembered, to_text
from ppssl.models import registry


def shapes_of(task: str, name: str, **kwargs) -> dict:
    from paddle import LazyGuard

    with LazyGuard():
        return official_shapes(registry.create(task, name, **kwargs))


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def never(*_args):
    raise AssertionError("looked at the models again")


@pytest.mark.parametrize("task, name", sorted({(e.task, e.build.__name__) for task in ("pretrain", "classifier") for e in registry.entries(task)}))
def test_every_network_comes_back_from_its_text_as_it_was(task, name):
    network = recognise(shapes_of(task, name), hint=name)
    again = from_text(to_text(network))
    assert again == network and again.official == network.official and list(again.shapes) == list(network.shapes)
    assert {f.name: type(getattr(again, f.name)) for f in dataclasses.fields(again)} == {
        f.name: type(getattr(network, f.name)) for f in dataclasses.fields(network)}


def test_the_second_time_no_model_is_looked_at_but_for_other_shapes_or_options_it_is(own):
    shapes = shapes_of("pretrain", "mae_vit_tiny_patch4")
    found = remembered(recognise, shapes, False, None, None)
    assert remembered(never, shapes, False, None, None) == found
    for others in ((shapes_of("pretrain", "mae_vit_tiny_patch4", img_size=64), False, None, None), (shapes, True, None, None),
                   (shapes, False, "mae_vit_tiny_patch4", None), (dict(reversed(shapes.items())), False, None, None)):
        with pytest.raises(AssertionError, match="looked at"):
            remembered(never, *others)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b"\xff\xfe", b"__import__('os').system('true')"])
def test_an_entry_that_is_no_network_is_replaced(own, content):
    shapes = shapes_of("classifier", "resnet_tiny")
    options = (False, None, None)
    entry_of(shapes, options).parent.mkdir(parents=True)
    entry_of(shapes, options).write_bytes(content)
    found = remembered(recognise, shapes, *options)
    assert found == recognise(shapes) and remembered(never, shapes, *options) == found


def test_a_user_without_a_home_folder_goes_without(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 987654)
    shapes = shapes_of("classifier", "resnet_tiny")
    with pytest.raises(RuntimeError):
        entry_of(shapes, ())
    assert remembered(recognise, shapes, False, None, None) == recognise(shapes)


def test_a_cache_that_cannot_be_written_is_done_without(own):
    (own / "ppssl").write_text("a file where the folder should be")
    shapes = shapes_of("classifier", "resnet_tiny")
    assert remembered(recognise, shapes, False, None, None) == recognise(shapes)
