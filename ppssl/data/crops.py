"""Random crop boxes. Sources: torchvision RandomResizedCrop, facebookresearch/mae `util/crop.py`."""
import math

import numpy as np

Box = tuple[int, int, int, int]                           # top, left, height, width
RATIO = (3 / 4, 4 / 3)                                    # width / height


def draw_crop_box(shape: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float] = (0.08, 1.0),
                  ratio: tuple[float, float] = RATIO, attempts: int = 10) -> Box:
    """A box with area U(scale) of an image (height, width) and log-uniform aspect ratio, uniformly placed.

    Draws that do not fit are repeated; after the last attempt the box is the largest centred one of allowed aspect.
    """
    height, width = shape
    for _ in range(attempts):
        h, w = draw_shape(height * width, rng, scale, ratio)
        if 0 < h <= height and 0 < w <= width:
            return place(shape, (h, w), rng)
    if width / height < ratio[0]:
        h, w = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


def draw_simple_crop_box(shape: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float] = (0.08, 1.0),
                         ratio: tuple[float, float] = RATIO) -> Box:
    """One draw, its sides clipped to the image: larger boxes than `draw_crop_box`'s, and aspects outside the range."""
    h, w = draw_shape(shape[0] * shape[1], rng, scale, ratio)
    return place(shape, (min(max(h, 1), shape[0]), min(max(w, 1), shape[1])), rng)


def draw_shape(area: float, rng: np.random.Generator, scale: tuple[float, float],
               ratio: tuple[float, float]) -> tuple[int, int]:
    """(height, width) of area U(scale) * area with width / height = exp(U(log ratio)), rounded."""
    area *= rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))


def place(shape: tuple[int, int], box: tuple[int, int], rng: np.random.Generator) -> Box:
    """A box (height, width) at a uniform position in an image (height, width)."""
    top = int(rng.integers(shape[0] - box[0], endpoint=True))
    left = int(rng.integers(shape[1] - box[1], endpoint=True))
    return top, left, *box
