import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ppssl.data import color
from tests.data.pictures import noise, smooth


def every_third_colour() -> np.ndarray:
    """uint8 [.., 3] with all combinations of 86 levels per channel, 0 and 255 among them."""
    levels = np.arange(0, 256, 3, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(86, -1, 3)


def pil_hue(image: np.ndarray, factor: float) -> np.ndarray:
    h, s, v = Image.fromarray(image).convert("HSV").split()
    h = Image.fromarray((np.asarray(h).astype(int) + int(factor * 255)).astype(np.uint8))
    return np.asarray(Image.merge("HSV", (h, s, v)).convert("RGB"))


@pytest.mark.parametrize("ours, theirs", [
    (color.brightness, ImageEnhance.Brightness), (color.contrast, ImageEnhance.Contrast),
    (color.saturation, ImageEnhance.Color)])
def test_enhancements_equal_pillow(ours, theirs):
    rng = np.random.default_rng(0)
    images = [every_third_colour(), smooth(40, 50), np.full((3, 3, 3), 77, np.uint8)]
    for image in images:
        for factor in (0.0, 1.0, 2.0, *rng.uniform(0, 2, 12)):
            expected = theirs(Image.fromarray(image)).enhance(factor)
            np.testing.assert_array_equal(ours(image, factor), np.asarray(expected))


@pytest.mark.parametrize("factor", [0.0, 0.1, -0.1, 0.0701, -0.06, 0.5, -0.5])
def test_hue_equals_pillow_on_every_kind_of_colour(factor):
    image = every_third_colour()
    np.testing.assert_array_equal(color.hue(image, factor), pil_hue(image, factor))


def test_grayscale_and_solarize_equal_pillow():
    image = every_third_colour()
    picture = Image.fromarray(image)
    np.testing.assert_array_equal(color.grayscale(image), np.asarray(picture.convert("L").convert("RGB")))
    for threshold in (0, 1, 128, 255, 256):
        expected = np.asarray(ImageOps.solarize(picture, threshold))
        np.testing.assert_array_equal(color.solarize(image, threshold), expected)


def test_blur_is_opencv_s_and_keeps_a_flat_image():
    image = smooth(40, 50)
    np.testing.assert_array_equal(color.gaussian_blur(image, 1.3), cv2.GaussianBlur(image, (23, 23), 1.3))
    flat = np.full((30, 30, 3), 77, np.uint8)
    np.testing.assert_array_equal(color.gaussian_blur(flat, 2.0), flat)


def test_operations_leave_their_input_alone_and_take_views():
    image = noise(30, 40)
    before = image.copy()
    view = image[:, ::-1][3:, 2:]
    for op in color.JITTER_OPS.values():
        np.testing.assert_array_equal(op(view, 0.3), op(np.ascontiguousarray(view), 0.3))
    np.testing.assert_array_equal(image, before)


def test_jitter_is_applied_in_the_order_drawn():
    image = smooth(20, 20)
    chain = (("hue", 0.09), ("brightness", 0.5), ("contrast", 1.4))
    expected = color.contrast(color.brightness(color.hue(image, 0.09), 0.5), 1.4)
    np.testing.assert_array_equal(color.color_jitter(image, chain), expected)
    assert (color.color_jitter(image, chain[::-1]) != expected).any()


def test_jitter_draws_every_order_and_its_ranges():
    rng = np.random.default_rng(0)
    draws = [color.draw_jitter(rng, brightness=0.4, contrast=1.5, hue=0.1) for _ in range(3000)]
    orders = [tuple(name for name, _ in draw) for draw in draws]
    assert len(set(orders)) == 6 and all(abs(orders.count(o) / 3000 - 1 / 6) < 0.04 for o in set(orders))
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.0, 2.5), ("hue", -0.1, 0.1)):
        values = np.array([dict(draw)[name] for draw in draws])
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)
