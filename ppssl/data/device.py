"""What is done to a batch on the device: normalisation of uint8 images, masks of boxes."""
import paddle

from ppssl.data.transforms import IMAGENET_MEAN, IMAGENET_STD


def normalize(images, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: (x / 255 - mean) / std, by true division."""
    def per_channel(values):
        return paddle.to_tensor(values, dtype="float32").reshape([1, 3, 1, 1])

    x = images.transpose([0, 3, 1, 2]).astype("float32") / paddle.full([], 255.0)
    return (x - per_channel(mean)) / per_channel(std)


def inside(boxes, height: int, width: int):
    """Masks of boxes [..., 4] int (top, left, height, width) -> bool [..., height, width], True inside the box."""
    top, left, tall, wide = boxes.unsqueeze(-1).unsqueeze(-1).unbind(axis=-3)                  # each [..., 1, 1]
    y = paddle.arange(height, dtype=boxes.dtype).unsqueeze(1)
    x = paddle.arange(width, dtype=boxes.dtype).unsqueeze(0)
    return (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
