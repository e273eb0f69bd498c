"""The four-pane picture and the quick probe, from a run folder."""
import cv2
import numpy as np
import paddle
import pytest

from convert.recognise import recognise
from ppssl import cli, probe, visualize
from ppssl.engine.rebuild import rebuild
from ppssl.errors import BadRequest
from ppssl.methods.bootmae import normalized_patches
from ppssl.models.masking import normalize_patches, patchify, unpatchify
from ppssl.reconstructor import reconstructor, refuse_encoder
from tests.convert.networks import ENTRIES, GOLDEN, shapes_of
from tests.golden.case import Case
from tests.pictures import image_folder

OFFICIAL = ["mae/pretrain_forward", "mae/pretrain_forward_normpix", "convmae/pretrain_forward", "fastconvmae/pretrain_forward",
            "fastconvmae/easycv_pretrain_forward", "bootmae/pretrain_checkpoint"]
PICTURE = GOLDEN / "data/decode/jpeg420.jpg"


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


@pytest.mark.parametrize("case", OFFICIAL)
def test_the_authors_files_of_every_reconstructing_method_are_shown_as_they_are(case, tmp_path, capsys):
    assert visualize.main([str(GOLDEN / case / "checkpoint.pth"), str(PICTURE), "-o", str(tmp_path / "out.png")]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "out.png").exists() and ("bootmae" in case) == (visualize.UNTOLD not in said)


def test_the_authors_weights_give_the_authors_predictions():
    case = Case(GOLDEN / "mae/pretrain_forward")
    method, told = reconstructor(case.file("checkpoint.pth"))
    images, noise = (paddle.to_tensor(case.inputs[name]) for name in ("imgs", "noise"))
    with paddle.no_grad():
        # the file does not tell the number of heads, of which the authors' tiny model has 3 and 2
        for blocks, heads in ((method.model.blocks, 3), (method.model.decoder_blocks, 2)):
            for block in blocks:
                block.attn.num_heads = heads
        _, pred, _ = method.model(images, noise, case.spec["mask_ratio"])
    assert not told and np.abs(pred.numpy() - case.arrays["out/pred"]).max() < 1e-5


@pytest.mark.parametrize("name, fix", [
    ("mae_vit_base_patch16", "mae_visualize_vit_base.pth"), ("mae_vit_huge_patch14", "mae_visualize_vit_huge.pth"),
    ("convmae_convvit_tiny_patch4", "pretraining run"), ("bootmae_tiny_patch4", "pretraining run")])
def test_an_encoder_alone_is_refused_with_the_file_that_would_do(name, fix):
    shapes = shapes_of(next(e for e in ENTRIES if (e.task, e.name) == ("pretrain", name)))
    refuse_encoder(recognise(shapes), "whole.pth")
    decoder = ("decode", "mask_token", "de_pos", "down", "lm_head")
    encoder = recognise({k: s for k, s in shapes.items() if not k.startswith(decoder)})
    with pytest.raises(BadRequest, match=f"encoder alone.*{fix}"):
        refuse_encoder(encoder, "encoder.pth")


@pytest.mark.parametrize("case", ["tec/pretrain_forward_plain", "byol/tiny_train", "mae/finetune_forward_cls_token"])
def test_what_predicts_no_pixels_is_refused_before_anything_is_built(case):
    with pytest.raises(BadRequest, match="predicts no pixels"):
        reconstructor(GOLDEN / case / "checkpoint.pth")


def test_whether_predictions_are_normalised_is_told_from_the_pixels():
    paddle.seed(0)
    images = paddle.randn([2, 3, 2, 2]).repeat_interleave(8, axis=2).repeat_interleave(8, axis=3) + 0.3 * paddle.randn([2, 3, 16, 16])
    mask, truth = paddle.to_tensor(np.tile([1.0, 0.0], (2, 8)).astype("float32")), patchify(images, (4, 4))
    for target, normalised in ((truth, False), (normalize_patches(truth), True)):
        prediction = unpatchify(0.7 * target, (4, 4), (4, 4))
        assert visualize.predicts_normalised(prediction, images, mask) == normalised


def test_channels_that_were_normalised_by_themselves_get_their_own_statistics_back():
    paddle.seed(0)
    images, mask = paddle.rand([1, 3, 8, 8]) * paddle.to_tensor([1.0, 0.1, 3.0]).reshape([1, 3, 1, 1]), paddle.ones([1, 4])
    target = normalized_patches(images, (4, 4))                                                # [B, N, C, ph * pw]
    pixels = unpatchify(target.transpose([0, 1, 3, 2]).flatten(2), (4, 4), (2, 2))
    back = visualize.undo_normalisation(pixels, images, mask, "target", per_channel=True)
    assert np.abs(back.numpy() - images.numpy()).max() < 0.1                                    # of 16 values: n or n - 1
    assert np.abs(visualize.undo_normalisation(pixels, images, mask, "target").numpy() - images.numpy()).max() > 0.5


def test_the_command_refuses_an_encoder_file_in_one_line(tmp_path, capsys):
    assert visualize.main([str(GOLDEN / "tec/ibot_forward/checkpoint.pth"), str(PICTURE), "-o", str(tmp_path / "no.png")]) == 2
    said = capsys.readouterr().err
    assert "encoder alone" in said and len(said.splitlines()) == 1 and not list(tmp_path.iterdir())
