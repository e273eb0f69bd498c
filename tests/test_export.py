"""`python -m ppssl.export`: what is written gives what the original gives, or is not written."""
import builtins
import json
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

import ppssl
from convert.formats import save_checkpoint, save_torch
from ppssl import export
from ppssl.backbone import load_backbone
from tests.convert.networks import ENTRIES, GOLDEN

CLASSIFIERS = [e for e in ENTRIES if "tiny" in e.name and e.task == "classifier"]


@pytest.fixture(scope="module", params=CLASSIFIERS, ids=lambda e: e.name)
def checkpoint(request, tmp_path_factory):
    """An own checkpoint of every family's tiny classifier."""
    path = tmp_path_factory.mktemp("run") / "x.safetensors"
    tensors = {f"model.{k}": t.numpy() for k, t in request.param.build().state_dict().items()}
    save_checkpoint(path, tensors, {"config": json.dumps({"model": request.param.name})})
    return path


@pytest.mark.parametrize("format", ["inference", "pdparams"])
def test_every_family_is_exported_for_any_batch(format, checkpoint, tmp_path, capsys):
    assert export.main([str(checkpoint), "-o", str(tmp_path / "out"), "--format", format]) == 0
    said = capsys.readouterr().out
    assert "out: float32 [batch, 10]" in said and "checked: largest difference" in said
    layer, images = load_backbone(checkpoint), np.random.default_rng(1).standard_normal((5, 3, 32, 32)).astype(np.float32)
    theirs = export.FORMATS[format].run(layer, tmp_path / "out", images)
    assert np.abs(theirs - layer(paddle.to_tensor(images)).numpy()).max() < 1e-5


def test_onnx_is_exported_where_its_tools_are_installed(checkpoint, tmp_path):
    pytest.importorskip("paddle2onnx")
    pytest.importorskip("onnxruntime")
    assert export.main([str(checkpoint), "-o", str(tmp_path / "out.onnx"), "--format", "onnx"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


@pytest.fixture
def classifier():
    return GOLDEN / "mae/finetune_forward_cls_token/checkpoint.pth"


@pytest.mark.filterwarnings("ignore:.*num_heads")
def test_an_official_file_gives_logits_and_with_features_what_its_head_sees(classifier, tmp_path, capsys):
    assert export.main([str(classifier), "-o", str(tmp_path / "a.pdparams"), "--format", "pdparams"]) == 0
    assert export.main([str(classifier), "-o", str(tmp_path / "b"), "--format", "pdparams", "--features"]) == 0
    assert "[batch, 10]" in (said := capsys.readouterr().out) and "[batch, 24]" in said
    names = [set(paddle.load(str(tmp_path / name))) for name in ("a.pdparams", "b.pdparams")]
    assert names[0] - names[1] == {"head.weight", "head.bias"}
    images = paddle.randn([2, 3, 16, 16])
    again, first = (load_backbone(path)(images).numpy() for path in (tmp_path / "a.pdparams", classifier))
    assert np.array_equal(again, first)


@pytest.mark.filterwarnings("ignore:.*num_heads")
@pytest.mark.parametrize("spoil", [lambda t: 1.001 * t, lambda t: t * float("nan")])
def test_what_differs_from_the_original_is_not_written(spoil, classifier, tmp_path, capsys, monkeypatch):
    def write(layer, stem):
        export.save_paddle(f"{stem}.pdparams", {name: np.asarray(spoil(t.numpy()), np.float32) for name, t in layer.state_dict().items()})
    kind = export.FORMATS["pdparams"]
    monkeypatch.setitem(export.FORMATS, "pdparams", export.Format(kind.suffix, write, kind.run))
    assert export.main([str(classifier), "-o", str(tmp_path / "out"), "--format", "pdparams"]) == 1
    assert "nothing written" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*num_heads")
def test_onnx_without_its_tools_says_what_to_install_and_installs_nothing(classifier, tmp_path, capsys, monkeypatch):
    def refuse(name, *args, **kwargs):
        if name in ("paddle2onnx", "onnxruntime"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert export.main([str(classifier), "-o", str(tmp_path / "out"), "--format", "onnx"]) == 2
    assert "pip install paddle2onnx" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_exporter_is_kept_from_running_pip(classifier, tmp_path, monkeypatch):
    """Unless it is told not to optimise, by this very string, paddle2onnx installs packages by itself."""
    seen = {}
    exporter = SimpleNamespace(export=lambda *args, **kwargs: seen.update(kwargs))
    monkeypatch.setitem(sys.modules, "paddle2onnx", exporter)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    export.write_onnx(ppssl.load_backbone(classifier, num_heads=3), tmp_path / "x")
    assert seen["optimize_tool"] == "None"


@pytest.mark.filterwarnings("ignore:.*num_heads")
def test_wrong_requests_are_refused_in_one_line(classifier, tmp_path, capsys):
    out = ["-o", str(tmp_path / "x")]
    save_torch(tmp_path / "other.pth", {"model": {"a": np.zeros(3, np.float32)}})
    for arguments in ([str(tmp_path / "none.pth"), *out], [str(tmp_path / "other.pth"), *out], [str(classifier), *out, "--section", "ema"],
                      [str(classifier), "-o", str(tmp_path / "no" / "x")]):
        assert export.main(arguments) == 2
        assert len((said := capsys.readouterr().err).splitlines()) == 1 and said.startswith("error: ")
