"""Colour operations on uint8 RGB images [H, W, 3], equal bit for bit to torchvision's on PIL images.

Each returns a new image. Factor 1 leaves brightness, contrast and saturation as they are; hue is shifted by a fraction
of the colour circle, through 8-bit HSV. Source: torchvision `transforms/_functional_pil.py`, Pillow `ImageEnhance`.
"""
import cv2
import numpy as np

Jitter = tuple[tuple[str, float], ...]                    # (operation, factor) in the order of application


def apply_table(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replace every value by table[value]; table uint8 [256]."""
    return cv2.LUT(image, table)


def per_pixel(kernel, image: np.ndarray, argument: float) -> np.ndarray:
    """Run a compiled loop over the pixels of image: kernel(pixels [N, 3], argument, out [N, 3])."""
    pixels = np.ascontiguousarray(image).reshape(-1, 3)
    out = np.empty_like(pixels)
    kernel(pixels, argument, out)
    return out.reshape(image.shape)


def blend_table(base: int, factor: float) -> np.ndarray:
    """Table of base + factor * (value - base) in float32, truncated and clipped: blending with a constant image."""
    value = np.arange(256, dtype=np.float32)
    return np.clip(base + np.float32(factor) * (value - base), 0, 255).astype(np.uint8)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black."""
    return apply_table(image, blend_table(0, factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image's mean gray level, rounded."""
    from ppssl.data import kernels

    pixels = np.ascontiguousarray(image).reshape(-1, 3)
    return apply_table(image, blend_table(int(kernels.luma_sum(pixels) / len(pixels) + 0.5), factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend each pixel with its gray level."""
    from ppssl.data import kernels

    return per_pixel(kernels.saturate, image, factor)


def hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue by factor (-0.5..0.5) of the circle; 0 is no identity, since 8-bit HSV is coarser than RGB."""
    from ppssl.data import kernels

    return per_pixel(kernels.shift_hue, image, int(factor * 255))


def grayscale(image: np.ndarray) -> np.ndarray:
    """Gray levels in all three channels."""
    return saturation(image, 0.0)


def solarize(image: np.ndarray, threshold: int = 128) -> np.ndarray:
    """Invert the values from threshold up."""
    value = np.arange(256)
    return apply_table(image, np.where(value < threshold, value, 255 - value).astype(np.uint8))


def gaussian_blur(image: np.ndarray, sigma: float, kernel: int = 23) -> np.ndarray:
    """OpenCV's blur of kernel x kernel taps, edges mirrored. Pillow's, made of box filters, is no substitute."""
    return cv2.GaussianBlur(image, (kernel, kernel), sigma)


JITTER_OPS = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}


def draw_jitter(rng: np.random.Generator, brightness: float = 0, contrast: float = 0, saturation: float = 0,
                hue: float = 0) -> Jitter:
    """Factors U(max(0, 1-v), 1+v), hue U(-v, v), in random order; an operation of strength 0 is left out.

    Source: torchvision ColorJitter.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    ranges = {name: (-v, v) if name == "hue" else (max(0.0, 1 - v), 1 + v) for name, v in strengths.items() if v}
    names = [list(ranges)[i] for i in rng.permutation(len(ranges))]
    return tuple((name, rng.uniform(*ranges[name])) for name in names)


def color_jitter(image: np.ndarray, jitter: Jitter) -> np.ndarray:
    """Apply operations of JITTER_OPS one after the other, each to the uint8 result of the one before."""
    for name, factor in jitter:
        image = JITTER_OPS[name](image, factor)
    return image
