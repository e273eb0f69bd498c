"""Mixup and CutMix as in timm 0.3.2 (`data/mixup.py`): every image is mixed with its mirror in the batch, b with B-1-b.

What is mixed how is drawn on the host, one row of numbers per image, so that one vectorised application on the device
serves all modes.
"""
import math
from dataclasses import dataclass

import numpy as np

from ppssl.data.crops import Box
from ppssl.errors import BadRequest

MODES = ("batch", "elem", "pair")


@dataclass(frozen=True)
class MixupParams:
    """Strengths alpha of the Beta distributions (0 off), chances, and how many draws a batch has.

    mode: "batch" one draw for all, "pair" one for each two images mixed with each other, "elem" one for each image.
    cutmix_minmax (smallest, largest share of a side) draws CutMix boxes of its own and turns CutMix on.
    Raises BadRequest when neither is on, for an unknown mode, or for shares that do not rise.
    """
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    cutmix_minmax: tuple[float, float] | None = None
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"
    label_smoothing: float = 0.1
    num_classes: int = 1000

    def __post_init__(self):
        if self.mode not in MODES:
            raise BadRequest(f"mixup mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if not (self.mixup_alpha > 0 or self.cutmix):
            raise BadRequest("mixup needs mixup > 0, cutmix > 0 or cutmix_minmax; without them do not mix at all")
        if self.cutmix_minmax and not 0 <= self.cutmix_minmax[0] < self.cutmix_minmax[1] < 1:
            raise BadRequest(f"cutmix_minmax must be two rising shares of a side below 1, not {self.cutmix_minmax}")

    @property
    def cutmix(self) -> bool:
        return self.cutmix_alpha > 0 or self.cutmix_minmax is not None


@dataclass(frozen=True)
class MixupDraws:
    """Per image b: lam [B] float64, its own share of the label; box [B, 4] int64 (top, left, height, width) taken from
    the partner, of no size without CutMix; use_cutmix [B] bool."""
    lam: np.ndarray
    box: np.ndarray
    use_cutmix: np.ndarray


def draw_mixup(batch_size: int, image_size: tuple[int, int], params: MixupParams,
               rng: np.random.Generator) -> MixupDraws:
    """Draws for a batch of images (height, width). Raises BadRequest for an odd batch."""
    if batch_size % 2:
        raise BadRequest(f"mixup needs an even batch, not {batch_size}: every image has a partner")
    count = {"batch": 1, "pair": batch_size // 2, "elem": batch_size}[params.mode]
    rows = [draw_one(image_size, params, rng) for _ in range(count)]
    if params.mode == "batch":
        rows *= batch_size
    elif params.mode == "pair":
        rows += rows[::-1]
    lam, box, use_cutmix = zip(*rows)
    return MixupDraws(np.array(lam), np.array(box), np.array(use_cutmix))


def draw_one(image_size: tuple[int, int], params: MixupParams, rng: np.random.Generator) -> tuple[float, Box, bool]:
    """(lam, box, use_cutmix) of one image, pair or batch; lam 1 mixes nothing."""
    lam, use_cutmix = draw_lam(params, rng)
    if not use_cutmix or lam == 1.0:
        return lam, (0, 0, 0, 0), use_cutmix
    if params.cutmix_minmax:
        box = draw_minmax_box(image_size, params.cutmix_minmax, rng)
    else:
        box = cutmix_box(image_size, lam, (int(rng.integers(image_size[0])), int(rng.integers(image_size[1]))))
    return remaining_share(image_size, box), box, use_cutmix


def draw_lam(params: MixupParams, rng: np.random.Generator) -> tuple[float, bool]:
    """(lam, use_cutmix): a share from the Beta distribution of the kind of mixing drawn, 1 where none happens."""
    if rng.random() >= params.prob:
        return 1.0, False
    use_cutmix = params.cutmix and (params.mixup_alpha <= 0 or bool(rng.random() < params.switch_prob))
    alpha = params.mixup_alpha if not use_cutmix else 1.0 if params.cutmix_minmax else params.cutmix_alpha
    return float(rng.beta(alpha, alpha)), use_cutmix


def cutmix_box(image_size: tuple[int, int], lam: float, centre: tuple[int, int]) -> Box:
    """The box of about 1 - lam of the image around a centre (y, x), clipped: (top, left, height, width)."""
    spans = []
    for side, middle in zip(image_size, centre):
        half = int(side * math.sqrt(1 - lam)) // 2
        begin, end = max(middle - half, 0), min(middle + half, side)
        spans.append((begin, end - begin))
    (top, height), (left, width) = spans
    return top, left, height, width


def draw_minmax_box(image_size: tuple[int, int], minmax: tuple[float, float], rng: np.random.Generator) -> Box:
    """A box inside the image whose sides are uniform between two shares of the image's."""
    height, width = (int(rng.integers(int(side * minmax[0]), int(side * minmax[1]))) for side in image_size)
    top, left = int(rng.integers(image_size[0] - height)), int(rng.integers(image_size[1] - width))
    return top, left, height, width


def remaining_share(image_size: tuple[int, int], box: Box) -> float:
    """Share of the image outside the box: CutMix's lam after clipping."""
    return 1.0 - box[2] * box[3] / (image_size[0] * image_size[1])


def apply_mixup(images, labels, draws: MixupDraws, params: MixupParams):
    """images [B, 3, H, W] float32, labels [B] int64 -> mixed images, soft targets [B, num_classes] float32."""
    import paddle

    from ppssl.data.device import inside

    boxes = inside(paddle.to_tensor(draws.box), *images.shape[2:]).unsqueeze(1)                # [B, 1, H, W]
    own = paddle.to_tensor(np.where(draws.use_cutmix, 1.0, draws.lam), dtype="float32").reshape([-1, 1, 1, 1])
    own = paddle.where(boxes, paddle.zeros_like(own), own)
    lam = paddle.to_tensor(draws.lam, dtype="float32").unsqueeze(1)
    targets = soft_targets(labels, params)
    return mix(images, own), mix(targets, lam)


def mix(values, share):
    """share of each entry and 1 - share of its partner's, partners being mirrored along axis 0."""
    return values * share + values.flip(0) * (1 - share)


def soft_targets(labels, params: MixupParams):
    """Smoothed one-hot labels [B, num_classes] float32: s/C everywhere, 1 - s more at the label."""
    import paddle

    one_hot = paddle.nn.functional.one_hot(labels, params.num_classes)
    return one_hot * (1 - params.label_smoothing) + params.label_smoothing / params.num_classes
