import numpy as np
import pytest

from ppssl.data import transforms
from ppssl.data.color import hue
from ppssl.data.crops import draw_crop_box, draw_simple_crop_box
from ppssl.data.resize import resized_crop
from ppssl.data.transforms import (
    EvalTransform, FinetuneTransform, PretrainTransform, ProbeTransform, TwoViews, apply_view, draw_view)
from tests.data.pictures import smooth

IMAGE = smooth(90, 120)
RANDOM = [PretrainTransform(32), ProbeTransform(32), FinetuneTransform(32), TwoViews(32),
          FinetuneTransform(32, auto_augment=None, color_jitter=0.4, interpolation="random")]


@pytest.mark.parametrize("transform", RANDOM, ids=lambda t: type(t).__name__)
def test_a_transform_is_a_function_of_image_and_generator(transform):
    before = IMAGE.copy()
    first, again, other = (transform(IMAGE, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(IMAGE, before)


@pytest.mark.parametrize("make", [PretrainTransform, ProbeTransform, FinetuneTransform, EvalTransform])
@pytest.mark.parametrize("size, shape", [(24, (24, 24, 3)), ((24, 40), (24, 40, 3))])
def test_outputs_are_contiguous_uint8_of_the_size_asked_for(make, size, shape):
    for image in (IMAGE, IMAGE[:1, :1], IMAGE[:, :3], IMAGE[:24, :24]):
        out = make(size)(image, np.random.default_rng(0))
        assert out.shape == shape and out.dtype == np.uint8 and out.flags.c_contiguous


def test_crop_boxes_lie_in_the_image_and_keep_the_aspect():
    rng = np.random.default_rng(0)
    for shape in ((375, 500), (1, 1), (1, 400), (400, 1), (30, 31)):
        for _ in range(200):
            for draw in (draw_crop_box, draw_simple_crop_box):
                top, left, h, w = draw(shape, rng, (0.2, 1.0))
                assert 0 <= top and 0 <= left and 1 <= h <= shape[0] - top and 1 <= w <= shape[1] - left
            if min(shape) > 300:
                top, left, h, w = draw_crop_box(shape, rng)
                assert 0.74 < w / h < 1.35 and h * w > 0.079 * shape[0] * shape[1]


@pytest.mark.parametrize("shape, box", [
    ((100, 900), (0, 383, 100, 133)), ((900, 90), (390, 0, 120, 90)), ((100, 110), (0, 0, 100, 110))])
def test_the_fallback_is_the_largest_centred_box_of_allowed_aspect(shape, box):
    assert draw_crop_box(shape, np.random.default_rng(0), scale=(4.0, 4.0)) == box


def test_the_simple_crop_draws_once_and_clips():
    top, _, h, w = draw_simple_crop_box((100, 900), np.random.default_rng(0), scale=(4.0, 4.0))
    assert (top, h) == (0, 100) and 519 <= w <= 693


def test_images_are_mirrored_half_of_the_time(monkeypatch):
    flips = []
    monkeypatch.setattr(transforms, "resized_crop", lambda *args, flip: flips.append(flip))
    rng = np.random.default_rng(0)
    for transform in (PretrainTransform(8), ProbeTransform(8)):
        flips.clear()
        for _ in range(2000):
            transform(IMAGE, rng)
        assert abs(np.mean(flips) - 0.5) < 0.05


@pytest.mark.parametrize("size, crop_pct, resize_to", [
    (224, None, 256), (64, None, 73), (32, None, 36), (256, None, 256), (384, None, 384), (256, 224 / 256, 292),
    (384, 1.0, 384), ((128, 96), None, (146, 109))])
def test_evaluation_resizes_by_the_crop_share(size, crop_pct, resize_to):
    assert EvalTransform(size, crop_pct).resize_to == resize_to


def test_finetuning_fills_with_the_rounded_mean():
    assert FinetuneTransform(32).fill == (124, 116, 104)
    assert FinetuneTransform(32, mean=transforms.INCEPTION_MEAN).fill == (128, 128, 128)


def test_an_unknown_policy_is_an_error_when_the_transform_is_made():
    with pytest.raises(ValueError, match="augmix-m3"):
        FinetuneTransform(32, "augmix-m3")


def test_colour_jitter_is_ignored_beside_a_policy():
    for seed in range(5):
        both, policy = (FinetuneTransform(32, color_jitter=c)(IMAGE, np.random.default_rng(seed)) for c in (0.4, None))
        np.testing.assert_array_equal(both, policy)


def test_random_interpolation_uses_both(monkeypatch):
    seen = []
    monkeypatch.setattr(transforms, "resized_crop", lambda *args, flip: seen.append(args[3]))
    transform = FinetuneTransform(32, None, interpolation="random")
    rng = np.random.default_rng(0)
    for _ in range(200):
        transform(IMAGE, rng)
    assert 70 < seen.count("bicubic") < 130 and set(seen) == {"bicubic", "bilinear"}


def test_two_views_are_drawn_apart_with_their_own_chances():
    rng = np.random.default_rng(0)
    first, second = ([draw_view((90, 120), rng, (0.08, 1.0), blur, solarize) for _ in range(2000)]
                     for blur, solarize in ((1.0, 0.0), (0.1, 0.2)))
    for draws, expected in ((first, (1.0, 0.0, 0.8, 0.2, 0.5)), (second, (0.1, 0.2, 0.8, 0.2, 0.5))):
        happened = [(d.sigma is not None, d.solarize, bool(d.jitter), d.gray, d.flip) for d in draws]
        for share, p in zip(np.mean(happened, axis=0), expected):
            assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / 2000)
    sigmas = [d.sigma for d in first]
    assert 0.1 <= min(sigmas) < 0.12 and 1.98 < max(sigmas) <= 2.0
    views = TwoViews((24, 16))(IMAGE, rng)
    assert views.shape == (2, 24, 16, 3) and views.dtype == np.uint8 and (views[0] != views[1]).any()


def test_a_view_runs_what_was_drawn():
    draws = transforms.ViewDraws((5, 6, 40, 50), True, (("hue", 0.1),), gray=False, sigma=None, solarize=False)
    expected = hue(resized_crop(IMAGE, draws.box, 24, "bilinear", flip=True), 0.1)
    np.testing.assert_array_equal(apply_view(IMAGE, draws, 24), expected)
