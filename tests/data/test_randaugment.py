import numpy as np
import pytest

from ppssl.data.randaugment import OP_WEIGHTS, Policy, apply_op, argument, draw_ops, parse_policy
from ppssl.errors import BadRequest
from tests.data.pictures import smooth

IMAGE = smooth(40, 56)
FILL = (124, 116, 104)


@pytest.mark.parametrize("text, policy", [
    ("rand-m9-mstd0.5-inc1", Policy(9, 0.5, 2, True)), ("rand", Policy(10.0)), ("rand-n3-m7", Policy(7, 0.0, 3)),
    ("rand-mstd1-w0", Policy(10.0, 1.0, 2, False, True)), ("rand-inc0", Policy(increasing=True))])
def test_policies_are_read_as_timm_reads_them(text, policy):
    assert parse_policy(text) == policy


@pytest.mark.parametrize("text, message", [
    ("augmix-m5-w4", "'augmix-m5-w4' is not supported: use rand-"), ("original", "'original' is not supported"),
    ("", "not supported"), ("rand-m9-p3", "unknown part 'p3'"), ("rand-m", "unknown part 'm'"),
    ("rand-m9.5", "unknown part 'm9.5'"), ("rand-w1", "unknown part 'w1'")])
def test_other_policies_are_errors_that_name_what_is_known(text, message):
    with pytest.raises(BadRequest, match=message) as error:
        parse_policy(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OP_WEIGHTS)
def test_every_operation_keeps_size_and_type_at_every_level(name):
    for level in (0.0, 5.0, 9.0, 10.0):
        for increasing in (False, True):
            for image in (IMAGE, IMAGE[:1, :1]):
                out = apply_op(image, name, argument(name, level, increasing, -1), FILL)
                assert out.shape == image.shape and out.dtype == np.uint8


def test_affine_operations_uncover_the_fill():
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        out = apply_op(IMAGE, name, argument(name, 10, True), FILL)
        assert (out == FILL).all(axis=2).sum() > 20


def test_positive_shifts_move_the_content_left_and_up():
    np.testing.assert_array_equal(apply_op(IMAGE, "TranslateXRel", 0.25, FILL)[:, :42], IMAGE[:, 14:])
    np.testing.assert_array_equal(apply_op(IMAGE, "TranslateYRel", 0.25, FILL)[:30], IMAGE[10:])


def test_level_ten_posterizes_to_black_and_level_zero_changes_nothing():
    assert (apply_op(IMAGE, "Posterize", argument("Posterize", 10, True), FILL) == 0).all()
    for name in ("Rotate", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "SolarizeAdd", "Solarize"):
        np.testing.assert_array_equal(apply_op(IMAGE, name, argument(name, 0, True), FILL), IMAGE)


def test_operations_are_drawn_evenly_and_run_half_of_the_time():
    rng = np.random.default_rng(0)
    drawn = [op for _ in range(6000) for op in draw_ops(parse_policy("rand-m9-mstd0.5-inc1"), rng)]
    assert abs(len(drawn) / 12000 - 0.5) < 0.025
    counts = [sum(name == op for name, _ in drawn) for op in OP_WEIGHTS]
    assert min(counts) > 300 and max(counts) < 500
    shears = np.array([value for name, value in drawn if name == "ShearX"]) / 0.03
    levels = abs(shears)
    assert abs((shears < 0).mean() - 0.5) < 0.12 and levels.max() <= 10
    assert abs(levels.mean() - 9) < 0.12 and abs(levels.std() - 0.48) < 0.12


def test_weighted_policies_draw_without_repetition_and_never_invert():
    rng = np.random.default_rng(0)
    for _ in range(300):
        names = [name for name, _ in draw_ops(Policy(layers=13, weighted=True), rng)]
        assert len(set(names)) == len(names) and not {"Invert", "Posterize"} & set(names)
