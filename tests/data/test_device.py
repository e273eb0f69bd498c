import ppssl  # noqa: F401 - prepares the process before Paddle is imported

import numpy as np
import paddle
import pytest

from ppssl.data.device import inside, normalize
from ppssl.data.erasing import draw_erasing_box, erase, erasing_noise
from tests.data.pictures import noise


def test_normalize_equals_float32_division():
    images = np.stack([noise(16, 16), np.arange(768, dtype=np.uint8).reshape(16, 16, 3)])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    for given in (paddle.to_tensor(images), paddle.to_tensor(images.transpose(3, 0, 1, 2)).transpose([1, 2, 3, 0])):
        ours = normalize(given, mean, std)
        assert ours.dtype == paddle.float32
        np.testing.assert_array_equal(ours.numpy(), expected.transpose(0, 3, 1, 2))


def test_inside_marks_boxes_of_any_batch_shape():
    boxes = np.array([[[0, 0, 0, 0], [1, 2, 3, 2]], [[0, 0, 5, 6], [4, 5, 1, 1]]], np.int32)
    masks = inside(paddle.to_tensor(boxes), 5, 6).numpy()
    expected = np.zeros((2, 2, 5, 6), bool)
    expected[0, 1, 1:4, 2:4] = expected[1, 0] = expected[1, 1, 4:, 5:] = True
    np.testing.assert_array_equal(masks, expected)


def test_erasing_happens_by_chance_and_boxes_are_smaller_than_the_image():
    rng = np.random.default_rng(0)
    boxes = np.array([draw_erasing_box((20, 64), rng, probability=0.25)[0] for _ in range(4000)])
    assert abs((boxes[:, 2] > 0).mean() - 0.25) < 0.035
    top, left, h, w = boxes[boxes[:, 2] > 0].T
    assert (h < 20).all() and (w < 64).all() and (top + h <= 20).all() and (left + w <= 64).all()
    assert (h * w / 1280).max() < 0.36


def test_several_boxes_share_the_area_and_vary_in_number():
    rng = np.random.default_rng(0)
    boxes = np.array([draw_erasing_box(100, rng, probability=1, count=4) for _ in range(1000)])
    number = (boxes[:, :, 2] > 0).sum(axis=1)
    assert boxes.shape == (1000, 4, 4) and all(abs((number == n).mean() - 0.25) < 0.07 for n in (1, 2, 3, 4))
    four = boxes[number == 4]
    assert (four[..., 2] * four[..., 3]).max() < 0.36 * 100 * 100 / 4


def erased(mode: str, count: int = 2):
    paddle.seed(1)
    rng = np.random.default_rng(0)
    boxes = [draw_erasing_box((24, 32), rng, 1.0, count=count) for _ in range(5)]
    boxes = np.stack(boxes + [np.zeros((count, 4), np.int32)])
    images = np.random.default_rng(2).normal(size=(6, 3, 24, 32)).astype(np.float32)
    tensor = paddle.to_tensor(boxes)
    out = erase(paddle.to_tensor(images), tensor, erasing_noise(tensor, images.shape, mode)).numpy()
    return images, boxes, inside(tensor, 24, 32).numpy(), out


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_only_and_all_pixels_in_the_boxes_are_erased(mode):
    images, _, masks, out = erased(mode)
    changed = masks.any(axis=1)[:, None]
    np.testing.assert_array_equal((out != images).any(axis=1, keepdims=True), changed)
    assert out.dtype == np.float32 and not changed[5].any()


def test_pixel_noise_is_standard_normal_and_const_is_zero():
    _, _, masks, out = erased("pixel")
    values = out.transpose(0, 2, 3, 1)[masks.any(axis=1)]
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    _, _, masks, out = erased("const")
    assert (out.transpose(0, 2, 3, 1)[masks.any(axis=1)] == 0).all()


def test_rand_mode_gives_every_box_one_colour_of_its_own():
    _, boxes, masks, out = erased("rand")
    colours = []
    for b, k in zip(*np.nonzero(boxes[:, :, 2])):
        own = masks[b, k] & ~masks[b, k + 1:].any(axis=0)          # a later box covers an earlier one
        colours += [tuple(c) for c in np.unique(out[b].transpose(1, 2, 0)[own], axis=0)]
    assert len(colours) == len(set(colours)) == (boxes[:, :, 2] > 0).sum()


def test_an_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match="erasing mode must be one of pixel, rand, const, not 'blur'"):
        erasing_noise(paddle.zeros([1, 1, 4], "int32"), [1, 3, 8, 8], "blur")
