"""The pipelines of the recipes: transform(image uint8 [H, W, 3] RGB, rng) -> uint8 [h, w, 3], not yet normalised."""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ppssl.data.color import Jitter, color_jitter, draw_jitter, gaussian_blur, grayscale, solarize
from ppssl.data.crops import Box, draw_crop_box, draw_simple_crop_box
from ppssl.data.randaugment import Policy, apply_op, draw_ops, parse_policy
from ppssl.data.resize import INTERPOLATIONS, Size, as_pair, centre_crop, resize, resize_shorter, resized_crop

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN = INCEPTION_STD = (0.5, 0.5, 0.5)


def chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


@dataclass(frozen=True)
class PretrainTransform:
    """Random resized crop and mirroring: MAE, ConvMAE, FastConvMAE, BootMAE, TEC."""
    size: Size
    scale: tuple[float, float] = (0.2, 1.0)
    interpolation: str = "bicubic"

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = draw_crop_box(image.shape[:2], rng, self.scale)
        return resized_crop(image, box, self.size, self.interpolation, flip=chance(rng, 0.5))


@dataclass(frozen=True)
class ProbeTransform:
    """The single-draw crop and mirroring of linear probing. Source: facebookresearch/mae `main_linprobe.py`."""
    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: str = "bicubic"

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = draw_simple_crop_box(image.shape[:2], rng, self.scale)
        return resized_crop(image, box, self.size, self.interpolation, flip=chance(rng, 0.5))


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side to size / crop_pct (truncated), then crop the centre. Nothing is random.

    crop_pct None is MAE's rule: 224/256 up to 224, above that 1. A rectangle (height, width) is resized to exactly
    (height, width) / crop_pct, as in timm. Sources: facebookresearch/mae `util/datasets.py`, timm 0.3.2.
    """
    size: Size
    crop_pct: float | None = None
    interpolation: str = "bicubic"

    @cached_property
    def resize_to(self) -> Size:
        """Length of the shorter side after resizing; (height, width) for a rectangle."""
        height, width = as_pair(self.size)
        crop_pct = self.crop_pct or (224 / 256 if max(height, width) <= 224 else 1.0)
        return int(height / crop_pct) if height == width else (int(height / crop_pct), int(width / crop_pct))

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        change = resize_shorter if isinstance(self.resize_to, int) else resize
        return centre_crop(change(image, self.resize_to, self.interpolation), self.size)


@dataclass(frozen=True)
class FinetuneTransform:
    """Random resized crop, mirroring, then RandAugment, or colour jitter where there is no policy (timm 0.3.2).

    mean (0..1) is the dataset's: its colour fills what a rotation or shift uncovers. color_jitter is the strength of
    brightness, contrast and saturation, ignored beside a policy. interpolation "random" draws bicubic or bilinear anew
    for every operation. Random erasing follows on the device, after normalisation: see `erasing.py`.
    """
    size: Size
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    color_jitter: float | None = None
    interpolation: str = "bicubic"
    scale: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self):
        self.policy                                       # a wrong policy is an error here, not later in a worker

    @cached_property
    def policy(self) -> Policy | None:
        return parse_policy(self.auto_augment) if self.auto_augment else None

    @cached_property
    def fill(self) -> tuple[int, ...]:
        return tuple(min(255, round(255 * m)) for m in self.mean)

    def draw_interpolation(self, rng: np.random.Generator) -> str:
        return INTERPOLATIONS[rng.integers(2)] if self.interpolation == "random" else self.interpolation

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = draw_crop_box(image.shape[:2], rng, self.scale)
        image = resized_crop(image, box, self.size, self.draw_interpolation(rng), flip=chance(rng, 0.5))
        if self.policy:
            for name, value in draw_ops(self.policy, rng):
                image = apply_op(image, name, value, self.fill, self.draw_interpolation(rng))
        elif self.color_jitter:
            image = color_jitter(image, draw_jitter(rng, *[self.color_jitter] * 3))
        return image


@dataclass(frozen=True)
class ViewDraws:
    """What was drawn for one view. sigma None is no blur, jitter () no jitter."""
    box: Box
    flip: bool
    jitter: Jitter
    gray: bool
    sigma: float | None
    solarize: bool


def draw_view(shape: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float], blur: float,
              solarize: float) -> ViewDraws:
    """Draws for one view of an image (height, width); blur and solarize are probabilities."""
    return ViewDraws(
        box=draw_crop_box(shape, rng, scale),
        flip=chance(rng, 0.5),
        jitter=draw_jitter(rng, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1) if chance(rng, 0.8) else (),
        gray=chance(rng, 0.2),
        sigma=float(rng.uniform(0.1, 2.0)) if chance(rng, blur) else None,
        solarize=chance(rng, solarize))


def apply_view(image: np.ndarray, draws: ViewDraws, size: Size, interpolation: str = "bilinear", blur_kernel: int = 23,
               solarize_threshold: int = 128) -> np.ndarray:
    """uint8 [H, W, 3] -> one view, uint8 [size, 3]. Source: blankWorld/BYOL-PyTorch `data/byol_transform.py`."""
    view = resized_crop(image, draws.box, size, interpolation, draws.flip)
    view = color_jitter(view, draws.jitter)
    if draws.gray:
        view = grayscale(view)
    if draws.sigma is not None:
        view = gaussian_blur(view, draws.sigma, blur_kernel)
    return solarize(view, solarize_threshold) if draws.solarize else view


@dataclass(frozen=True)
class TwoViews:
    """BYOL's two views of an image, each with its own crop: uint8 [2, h, w, 3].

    blur and solarize hold each view's probability. The official code's crops are bilinear (the paper's bicubic).
    """
    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: str = "bilinear"
    blur: tuple[float, float] = (1.0, 0.1)
    solarize: tuple[float, float] = (0.0, 0.2)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        draws = [draw_view(image.shape[:2], rng, self.scale, *view) for view in zip(self.blur, self.solarize)]
        return np.stack([apply_view(image, d, self.size, self.interpolation) for d in draws])
