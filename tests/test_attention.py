"""`python -m ppssl.attention`: the weights are the model's own, and every ViT backbone is shown."""
import json

import cv2
import numpy as np
import paddle
import pytest

import ppssl
from convert.formats import save_checkpoint
from ppssl import attention
from tests.convert.networks import ENTRIES, GOLDEN
from tests.golden.case import Case

PICTURE = GOLDEN / "data/decode/jpeg420.jpg"
TINY = [e for e in ENTRIES if "tiny" in e.name and e.task == "classifier"]
VITS = [e for e in TINY if e.family != "byol"]


def checkpoint(entry, folder):
    tensors = {f"model.{k}": t.numpy() for k, t in entry.build().state_dict().items()}
    save_checkpoint(folder / "x.safetensors", tensors, {"config": json.dumps({"model": entry.name})})
    return folder / "x.safetensors"


def test_the_weights_are_those_of_the_authors_model():
    case = Case(GOLDEN / "tec/ibot_forward")
    backbone = ppssl.load_backbone(case.file("checkpoint.pth"), num_heads=3, global_pool=False)
    with paddle.no_grad():
        weights = attention.last_weights(backbone, paddle.to_tensor(case.inputs["images"]))
    assert np.abs(weights.numpy() - case.arrays["out/last_attention"]).max() < 1e-6


@pytest.mark.parametrize("entry", VITS, ids=lambda e: e.name)
def test_the_weights_give_what_the_attention_layer_gives(entry):
    layer = attention.last_attention(entry.build())
    x = paddle.randn([2, 5, 128])
    values = layer.split_heads(x)[2].transpose([0, 2, 1, 3])                                   # [B, heads, N, d]
    mixed = paddle.matmul(attention.weights_of(layer, x), values).transpose([0, 2, 1, 3]).flatten(2)
    assert np.abs((layer.proj(mixed) - layer(x)).numpy()).max() < 1e-6


@pytest.mark.parametrize("entry", VITS, ids=lambda e: e.name)
def test_every_vit_backbone_is_shown_head_by_head(entry, tmp_path, capsys):
    path, out = checkpoint(entry, tmp_path), tmp_path / "out.png"
    assert attention.main([str(path), str(PICTURE), str(PICTURE), "-o", str(out)]) == 0
    assert cv2.imread(str(out)).shape[1] == 5 * (128 + 4)                                      # the picture and four heads
    assert ("receives" in capsys.readouterr().out) == (entry.family == "convmae")
    maps, _ = attention.attention_maps(ppssl.load_backbone(path), paddle.randn([2, 3, 32, 32]))
    total = maps.sum((2, 3))
    assert maps.shape == (2, 4, 8, 8) and (np.allclose(total, 1, atol=1e-5) if entry.family == "convmae" else (total < 1).all())


def test_the_brightest_patch_is_the_one_looked_at_most():
    colours = attention.coloured(np.arange(4.0).reshape(1, 2, 2), (8, 8))
    assert colours.shape == (1, 8, 8, 3) and colours[0].sum(-1).argmax() // 8 >= 4
    assert (colours[0, 4:, 4:] == colours[0, 7, 7]).all()


def test_what_has_no_attention_is_refused(tmp_path, capsys):
    (tmp_path / "y").mkdir()
    path = checkpoint(next(e for e in TINY if e.family == "byol"), tmp_path)
    vit = checkpoint(VITS[0], tmp_path / "y")
    for arguments in ([str(path), str(PICTURE)], [str(tmp_path / "no.pth"), str(PICTURE)], [str(vit), "no.jpg"]):
        assert attention.main(arguments) == 2
        assert len((said := capsys.readouterr().err).splitlines()) == 1 and said.startswith("error: ")
