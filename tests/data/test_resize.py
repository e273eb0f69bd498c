import numba
import numpy as np
import pytest
from PIL import Image

from ppssl import compiled
from ppssl.data import kernels
from ppssl.data.resize import as_pair, centre_crop, resize, resize_shorter, resized_crop, shorter_side_shape
from ppssl.errors import BadRequest
from tests.data.pictures import noise, smooth

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def pil_resize(image, size, interpolation):
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], FILTERS[interpolation]))


@pytest.mark.parametrize("interpolation", FILTERS)
def test_resize_equals_pillow_on_random_sizes_up_and_down(interpolation):
    rng = np.random.default_rng(0)
    for seed in range(150):
        height, width, *size = np.exp(rng.uniform(0, np.log(300), 4)).astype(int)
        image = (noise if seed % 2 else smooth)(height, width, seed)
        np.testing.assert_array_equal(resize(image, tuple(size), interpolation), pil_resize(image, size, interpolation))


@pytest.mark.parametrize("shape, size", [
    ((375, 500), 224), ((500, 333), 224), ((30, 40), 224), ((224, 300), 224), ((300, 224), 224), ((224, 224), 224),
    ((1, 1), 7), ((400, 3), (50, 9)), ((3, 400), (9, 50)), ((300, 2), 400)])
def test_resize_equals_pillow_on_particular_shapes(shape, size):
    image = smooth(*shape)
    for interpolation in FILTERS:
        expected = pil_resize(image, as_pair(size), interpolation)
        np.testing.assert_array_equal(resize(image, size, interpolation), expected)


def test_extreme_values_neither_wrap_nor_shift():
    image = np.zeros((40, 40, 3), np.uint8)
    image[::2, 1::3] = 255
    np.testing.assert_array_equal(resize(image, 97), pil_resize(image, (97, 97), "bicubic"))
    assert (resize(np.full((50, 60, 3), 255, np.uint8), 33) == 255).all()


@pytest.mark.parametrize("view", [
    lambda a: a[5:80, 7:90], lambda a: a[::-1], lambda a: a[:, ::2], lambda a: a[..., ::-1],
    lambda a: np.broadcast_to(a, a.shape)])
def test_any_strides_and_read_only_memory_are_accepted(view):
    image = view(smooth(90, 100))
    np.testing.assert_array_equal(resize(image, (40, 55)), pil_resize(image, (40, 55), "bicubic"))


def test_another_interpolation_is_an_error():
    with pytest.raises(BadRequest, match="interpolation must be one of bicubic, bilinear, not 'lanczos'"):
        resize(smooth(8, 8), 4, "lanczos")


@pytest.mark.parametrize("flip", [False, True])
def test_resized_crop_ignores_what_is_outside_the_box(flip):
    image = noise(100, 120)
    box = (10, 21, 60, 71)
    picture = Image.fromarray(image).crop((21, 10, 92, 70)).resize((48, 32), FILTERS["bicubic"])
    expected = np.asarray(picture)[:, ::-1] if flip else np.asarray(picture)
    np.testing.assert_array_equal(resized_crop(image, box, (32, 48), flip=flip), expected)


def test_the_shorter_side_is_given_and_the_longer_truncated():
    assert shorter_side_shape((161, 100), 73) == (117, 73)
    assert shorter_side_shape((128, 190), 64) == (64, 95)
    assert shorter_side_shape((50, 50), 20) == (20, 20)
    image = smooth(47, 60)
    np.testing.assert_array_equal(resize_shorter(image, 73), pil_resize(image, (73, 93), "bicubic"))


@pytest.mark.parametrize("length, first", [(5, 0), (7, 2), (9, 2), (11, 4), (6, 1), (8, 2)])
def test_centre_crop_rounds_half_offsets_to_even(length, first):
    image = noise(length, 4)
    np.testing.assert_array_equal(centre_crop(image, 4), image[first:first + 4])


def test_centre_crop_pads_small_images_with_more_zeros_behind():
    padded = centre_crop(np.full((3, 8, 3), 9, np.uint8), (6, 4))
    assert padded.shape == (6, 4, 3) and padded[:, 0, 0].tolist() == [0, 9, 9, 9, 0, 0]


def test_weights_sum_to_one():
    for n_in, n_out in ((500, 224), (100, 224), (7, 3)):
        for cubic in (True, False):
            _, _, weights = kernels.resampling_weights(n_in, n_out, cubic)
            assert np.abs(weights.sum(axis=1) - (1 << kernels.WEIGHT_BITS)).max() < 16


@pytest.mark.parametrize("error", [RuntimeError("no locator available"), OSError("No space left on device")])
def test_kernels_compile_where_no_cache_can_be_written(monkeypatch, error):
    njit = numba.njit

    def no_cache(*args, cache=False, **options):
        if cache:
            raise error
        return njit(*args, **options)

    monkeypatch.setattr(compiled.nb, "njit", no_cache)
    assert compiled.compiled("int64(int64)")(lambda n: n + 1)(2) == 3
