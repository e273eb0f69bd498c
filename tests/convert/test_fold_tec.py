"""python -m convert fold-tec: TEC's encoder as a plain ViT, from the authors' files and from runs of this project."""
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main
from convert.contents import read
from convert.conversion import to_paddle, write_paddle
from convert.formats import load, save_torch
from ppssl.models import registry
from tests.convert.formats_helpers import same
from tests.convert.networks import GOLDEN, random_weights, shapes_of

CASE = GOLDEN / "tec/weight_convert"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def folded(source, output="plain.pth") -> dict[str, np.ndarray]:
    assert main(["fold-tec", str(source), "-o", output]) == 0
    return load(output).tree


def assert_the_authors(ours: dict) -> None:
    """Their tensors in their order, bit for bit but for the class token, which is computed."""
    theirs = load(CASE / "converted.pth").tree
    token, reference = ours["cls_token"], theirs["cls_token"]
    assert np.abs(token - reference).max() <= 1e-6 * np.abs(reference).max()
    assert same(ours | {"cls_token": reference}, theirs)


def test_the_authors_checkpoint_becomes_the_authors_folded_file(capsys):
    assert_the_authors(folded(CASE / "checkpoint.pth"))
    assert "encoder of a plain ViT, 40 tensors" in capsys.readouterr().out


def test_a_file_in_paddles_layout_is_folded_alike_and_safetensors_are_written_by_suffix():
    write_paddle(Path("run"), to_paddle(read(CASE / "checkpoint.pth")), False, lambda _: None)
    assert_the_authors(folded("run", "plain.safetensors"))


def test_a_finetuned_classifier_with_its_token_mlp_can_be_folded_as_well():
    weights = random_weights(shapes_of(registry.find("classifier", "tec_vit_tiny_patch4"), mlp_token=True))
    save_torch("classifier.pth", {"model": weights})
    plain = folded("classifier.pth")
    assert plain.keys() == {k for k in weights if k.startswith(("cls_token", "pos_embed", "patch_embed", "blocks"))
                            and "mlp_token" not in k and "cls_token_mlp" not in k}


def test_the_folded_file_is_a_whole_encoder_that_verifies_and_finetunes():
    folded(CASE / "checkpoint.pth")
    network = read("plain.pth").main.network
    assert network.absent == ("final norm", "decoder") and main(["verify", "plain.pth"]) == 0


@pytest.mark.parametrize("source, reason", [(CASE / "converted.pth", "nothing to fold"), ("plain.pth", "check the path")])
def test_what_has_no_token_mlp_is_refused_and_nothing_written(source, reason, capsys):
    assert main(["fold-tec", str(source), "-o", "out.pth"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert reason in line and not list(Path().iterdir())


def test_an_existing_file_is_kept_unless_told(capsys):
    Path("plain.pth").write_text("precious")
    assert main(["fold-tec", str(CASE / "checkpoint.pth"), "-o", "plain.pth"]) == 2
    assert Path("plain.pth").read_text() == "precious" and "exists already" in capsys.readouterr().err
    assert main(["fold-tec", str(CASE / "checkpoint.pth"), "-o", "plain.pth", "--overwrite"]) == 0
