"""Pictures for tests: photo-like and noisy arrays, encoded files."""
import io

import numpy as np
from PIL import Image


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: coloured waves with a little noise, which compresses and blurs like a photo."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None] / 40
    waves = np.sin(x * rng.uniform(0.3, 2, 3) + rng.uniform(0, 6, 3)) + np.cos(y * rng.uniform(0.3, 2, 3))
    return np.clip(127 + 60 * waves + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def pil_decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
