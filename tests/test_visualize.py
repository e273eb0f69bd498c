"""The four-pane picture and the quick probe, from a run folder."""
import cv2
import numpy as np
import pytest

from ppssl import cli, probe, visualize
from ppssl.engine.rebuild import rebuild
from tests.pictures import image_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = image_folder(folder / "data")
    flags = ["--model", "mae_vit_tiny_patch4", "--input_size", "16", "--batch_size", "4", "--num_workers", "0", "--epochs", "1",
             "--warmup_epochs", "0", "--device", "cpu", "--data_path", str(data)]
    for name, extra in (("pixels", []), ("normalised", ["--norm_pix_loss"])):
        assert cli.main("pretrain", [*flags, "--output_dir", str(folder / name), *extra]) == 0
    return folder


def test_the_panes_show_what_they_say(run):
    images = [np.full((30, 20, 3), 200, np.uint8), np.full((20, 30, 3), 90, np.uint8)]
    rows, caption = visualize.panes(rebuild(run / "pixels"), images)
    original, masked, _, pasted = rows.transpose(1, 0, 2, 3, 4)
    hidden = np.isclose(masked, visualize.GRAY).all(-1)
    assert rows.shape == (2, 4, 16, 16, 3) and hidden.mean() == 0.75 and caption == visualize.MODES["pixels"]
    assert np.allclose(original[0], 200 / 255, atol=1e-3) and np.allclose(pasted[~hidden], original[~hidden])


def test_normalised_predictions_are_shown_with_visible_statistics_unless_asked_otherwise(run):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)]
    method = rebuild(run / "normalised")
    honest, caption = visualize.panes(method, images)
    papers, other = visualize.panes(method, images, unnorm="target")
    assert "visible" in caption and "own mean" in other and not np.allclose(honest[:, 2], papers[:, 2])


def test_the_command_writes_a_picture_and_refuses_what_it_cannot_show(run, tmp_path, capsys):
    image = run / "data" / "val" / "class0" / "0.png"
    assert visualize.main([str(run / "pixels"), str(image), str(image), "-o", str(tmp_path / "out.png")]) == 0
    assert cv2.imread(str(tmp_path / "out.png")).shape[1] == 4 * (128 + visualize.GAP)
    for arguments in ([str(run / "data"), str(image)], [str(run / "pixels"), str(run / "config.yaml")], [str(image), str(image)]):
        assert visualize.main([*arguments, "-o", str(tmp_path / "no.png")]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_the_quick_probe_compares_the_trained_encoder_with_a_random_one(run, capsys):
    assert probe.main([str(run / "pixels"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "trained encoder" in said and "random encoder" in said
