"""Resizing of uint8 images, equal bit for bit to Pillow's antialiased bicubic and bilinear.

The order of the two passes is that of Pillow 12.3, the official codes' own (Pillow 13 changes it for some shapes): what
a transform gives does not depend on the Pillow that happens to be installed.
"""
from functools import lru_cache

import cv2
import numpy as np

from ppssl.errors import BadRequest

INTERPOLATIONS = ("bicubic", "bilinear")

Size = int | tuple[int, int]                              # side of a square, or (height, width)


def as_pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one number or as two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def warm() -> None:
    """Compile the pixel loops, or load them from the disk cache: before workers are forked, so that they need not."""
    from ppssl.data import kernels  # noqa: F401


def resize(image: np.ndarray, size: Size, interpolation: str = "bicubic") -> np.ndarray:
    """uint8 [H, W, 3], strides of any kind, -> contiguous uint8 [size, 3]. Source: Pillow `src/libImaging/Resample.c`.

    A pass that would not change the length is skipped, so an image of the right size comes back unchanged (it may be
    the same memory). Raises BadRequest for another interpolation than bicubic and bilinear.
    """
    if interpolation not in INTERPOLATIONS:
        raise BadRequest(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {interpolation!r}")
    height, width = as_pair(size)
    if image.shape[0] > 100 * image.shape[1] and height < image.shape[0]:
        image = resize_rows(image, height, interpolation)                            # slivers: vertical pass first
    if image.shape[1] != width:
        image = cv2.transpose(resize_rows(cv2.transpose(image), width, interpolation))
    return np.ascontiguousarray(resize_rows(image, height, interpolation))


def resize_rows(image: np.ndarray, count: int, interpolation: str) -> np.ndarray:
    """uint8 [N, M, 3] -> [count, M, 3]: every new row is a weighted sum of old ones."""
    if image.shape[0] == count:
        return image
    from ppssl.data import kernels

    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    out = np.empty((count, rows.shape[1]), np.uint8)
    kernels.combine_rows(rows, *resampling_weights(image.shape[0], count, interpolation), out)
    return out.reshape(count, *image.shape[1:])


@lru_cache(maxsize=1024)                                  # about 10 kB each at 224
def resampling_weights(n_in: int, n_out: int, interpolation: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First source row, number of rows and integer weights of every output row; see `kernels.resampling_weights`."""
    from ppssl.data import kernels

    return kernels.resampling_weights(n_in, n_out, interpolation == "bicubic")


def resized_crop(image: np.ndarray, box: tuple[int, int, int, int], size: Size, interpolation: str = "bicubic",
                 flip: bool = False) -> np.ndarray:
    """Cut box (top, left, height, width) out, resize it to size, mirror it left to right where flip is set.

    The crop comes first: pixels outside the box never contribute. uint8 [H, W, 3] -> [size, 3].
    """
    top, left, height, width = box
    out = resize(image[top:top + height, left:left + width], size, interpolation)
    return cv2.flip(out, 1) if flip else out


def resize_shorter(image: np.ndarray, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """Resize so that the shorter side is size and the longer int(size * long / short), as torchvision's Resize(int)."""
    return resize(image, shorter_side_shape(image.shape[:2], size), interpolation)


def shorter_side_shape(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) of an image of that shape after its shorter side became size."""
    height, width = shape
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def centre_crop(image: np.ndarray, size: Size) -> np.ndarray:
    """The middle [size, 3] of an image, zero-padded where it is smaller. Source: torchvision CenterCrop.

    Offsets are rounded half to even; of an odd number of missing pixels the larger part comes behind.
    """
    height, width = as_pair(size)
    missing = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    if any(missing):
        image = np.pad(image, [(n // 2, (n + 1) // 2) for n in missing] + [(0, 0)])
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return np.ascontiguousarray(image[top:top + height, left:left + width])
