import ppssl  # noqa: F401 - prepares the process before Paddle is imported

import numpy as np
import paddle
import pytest

from ppssl.data.mixup import MODES, MixupDraws, MixupParams, apply_mixup, cutmix_box, draw_mixup, remaining_share
from ppssl.errors import BadRequest

B, C, SIZE = 6, 5, (12, 16)


def one_by_one(images, labels, draws, params):
    """The definition, image by image: own share lam and the rest from the mirrored image, or its box pasted in."""
    mixed, targets = images.copy(), np.full((B, C), params.label_smoothing / C)
    for b in range(B):
        targets[b, labels[b]] += 1 - params.label_smoothing
    for b in range(B):
        top, left, h, w = draws.box[b]
        if draws.use_cutmix[b]:
            mixed[b, :, top:top + h, left:left + w] = images[B - 1 - b, :, top:top + h, left:left + w]
        else:
            mixed[b] = draws.lam[b] * images[b] + (1 - draws.lam[b]) * images[B - 1 - b]
    share = draws.lam[:, None]
    return mixed, share * targets + (1 - share) * targets[::-1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [
    {}, {"prob": 0.5}, {"cutmix_minmax": (0.2, 0.8)}, {"mixup_alpha": 0.0}, {"cutmix_alpha": 0.0}])
def test_the_vectorised_application_equals_the_definition(mode, options):
    params = MixupParams(num_classes=C, mode=mode, **options)
    rng = np.random.default_rng(0)
    for _ in range(8):
        images, labels = rng.normal(size=(B, 3, *SIZE)).astype(np.float32), rng.integers(0, C, B)
        draws = draw_mixup(B, SIZE, params, rng)
        ours = apply_mixup(paddle.to_tensor(images), paddle.to_tensor(labels), draws, params)
        for a, b in zip(ours, one_by_one(images, labels, draws, params)):
            assert a.dtype == paddle.float32
            np.testing.assert_allclose(a.numpy(), b, rtol=0, atol=1e-6)


def test_modes_differ_in_who_shares_a_draw():
    rng = np.random.default_rng(0)
    params = [MixupParams(mode=mode, cutmix_alpha=0) for mode in ("batch", "pair", "elem")]
    batch, pair, elem = (draw_mixup(B, SIZE, p, rng).lam for p in params)
    assert len(set(batch)) == 1 and len(set(elem)) == B
    assert len(set(pair)) == B // 2 and (pair == pair[::-1]).all()


def test_nothing_is_mixed_without_luck():
    draws = draw_mixup(B, SIZE, MixupParams(prob=0.0, mode="elem"), np.random.default_rng(0))
    assert (draws.lam == 1).all() and not draws.use_cutmix.any() and not draws.box.any()


@pytest.mark.parametrize("options, share", [
    ({}, 0.5), ({"switch_prob": 0.2}, 0.2), ({"mixup_alpha": 0.0}, 1.0), ({"cutmix_alpha": 0.0}, 0.0),
    ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "cutmix_minmax": (0.3, 0.7)}, 1.0)])
def test_cutmix_is_chosen_with_the_switch_probability(options, share):
    draws = draw_mixup(4000, SIZE, MixupParams(mode="elem", **options), np.random.default_rng(0))
    assert abs(draws.use_cutmix.mean() - share) <= 5 * np.sqrt(share * (1 - share) / 4000)
    assert (draws.lam[draws.use_cutmix] == [remaining_share(SIZE, box) for box in draws.box[draws.use_cutmix]]).all()


def test_cutmix_boxes_are_clipped_at_the_borders():
    assert cutmix_box((24, 24), 0.6, (6, 11)) == (0, 4, 13, 14)
    assert cutmix_box((24, 24), 0.05, (7, 23)) == (0, 12, 18, 12)
    assert remaining_share((24, 24), (0, 4, 12, 14)) == pytest.approx(0.7083333333)


def test_minmax_boxes_lie_inside_with_sides_in_the_range():
    params = MixupParams(mode="elem", cutmix_minmax=(0.25, 0.75), switch_prob=1.0)
    top, left, h, w = draw_mixup(2000, (40, 80), params, np.random.default_rng(0)).box.T
    assert (h.min(), h.max(), w.min(), w.max()) == (10, 29, 20, 59)
    assert top.min() == left.min() == 0 and (top + h <= 40).all() and (left + w <= 80).all()


def test_a_batch_mixed_with_lam_one_only_smooths_its_labels():
    images, labels = paddle.randn([2, 3, 4, 4]), paddle.to_tensor([0, 2])
    draws = MixupDraws(np.ones(2), np.zeros((2, 4), int), np.zeros(2, bool))
    mixed, targets = apply_mixup(images, labels, draws, MixupParams(num_classes=4, label_smoothing=0.2))
    np.testing.assert_array_equal(mixed.numpy(), images.numpy())
    np.testing.assert_allclose(targets.numpy(), [[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]], rtol=1e-6)


@pytest.mark.parametrize("make, message", [
    (lambda: draw_mixup(5, SIZE, MixupParams(), np.random.default_rng(0)), "mixup needs an even batch, not 5"),
    (lambda: MixupParams(mode="half"), "mixup mode must be one of batch, elem, pair, not 'half'"),
    (lambda: MixupParams(mixup_alpha=0, cutmix_alpha=0), "mixup needs mixup > 0, cutmix > 0 or cutmix_minmax"),
    (lambda: MixupParams(cutmix_minmax=(0.8, 0.2)), "cutmix_minmax must be two rising shares")])
def test_wrong_settings_are_one_line_errors(make, message):
    with pytest.raises(BadRequest, match=message):
        make()
