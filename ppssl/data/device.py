"""What is done to a batch on the device: normalisation of uint8 images, masks of boxes."""
import numpy as np
import paddle

from ppssl.arrays import array
from ppssl.data.transforms import IMAGENET_MEAN, IMAGENET_STD


def normalize(images, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: (x / 255 - mean) / std, by true division."""
    mean, std = np.float32(mean), np.float32(std)
    if images.place.is_cpu_place():
        from ppssl.data.kernels import lookup

        levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        x = paddle.empty([images.shape[0], 3, *images.shape[1:3]])
        lookup(np.ascontiguousarray(images.numpy()).reshape(len(images), -1, 3), (levels - mean) / std, array(x).reshape(len(images), 3, -1))
        return x
    mean, std = (paddle.to_tensor(values).reshape([1, 3, 1, 1]) for values in (mean, std))
    return (images.transpose([0, 3, 1, 2]).astype("float32") / paddle.full([], 255.0) - mean) / std


def inside(boxes, height: int, width: int):
    """Masks of boxes [..., 4] int (top, left, height, width) -> bool [..., height, width], True inside the box."""
    top, left, tall, wide = boxes.unsqueeze(-1).unsqueeze(-1).unbind(axis=-3)                  # each [..., 1, 1]
    y = paddle.arange(height, dtype=boxes.dtype).unsqueeze(1)
    x = paddle.arange(width, dtype=boxes.dtype).unsqueeze(0)
    return (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
