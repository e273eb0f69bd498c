"""Random erasing as in timm 0.3.2 (`data/random_erasing.py`): drawn on the host, applied on the device."""
import numpy as np

from ppssl.data.crops import draw_shape, place
from ppssl.data.resize import Size, as_pair
from ppssl.errors import BadRequest

MODES = ("pixel", "rand", "const")


def draw_erasing_box(size: Size, rng: np.random.Generator, probability: float = 0.25,
                       area: tuple[float, float] = (0.02, 1 / 3), aspect: tuple[float, float] = (0.3, 1 / 0.3),
                       count: int = 1, attempts: int = 10) -> np.ndarray:
    """Boxes to erase of one image: int32 [count, 4] (top, left, height, width), all 0 where nothing is erased.

    area is a share of the image, divided by the number of boxes (uniform in 1..count); aspect is height / width,
    log-uniform. A box has to be smaller than the image in both directions, else it is drawn again.
    """
    boxes = np.zeros((count, 4), np.int32)
    if rng.random() >= probability:
        return boxes
    height, width = as_pair(size)
    drawn = int(rng.integers(1, count, endpoint=True))
    for box in boxes[:drawn]:
        for _ in range(attempts):
            w, h = draw_shape(height * width / drawn, rng, area, aspect)
            if h < height and w < width:
                box[:] = place((height, width), (h, w), rng)
                break
    return boxes


def erasing_noise(boxes, shape, mode: str = "pixel"):
    """What fills the boxes [B, count, 4] of images of this shape [B, 3, H, W]: float32, broadcastable to it.

    "pixel": every value N(0, 1); "rand": one N(0, 1) colour per box; "const": 0. Drawn from Paddle's generator.
    Raises BadRequest for another mode.
    """
    import paddle

    from ppssl.data.device import inside

    if mode not in MODES:
        raise BadRequest(f"erasing mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "pixel":
        return paddle.randn(shape)
    noise = paddle.zeros([1, 1, 1, 1])
    for k in range(boxes.shape[1] if mode == "rand" else 0):
        colour = paddle.randn([shape[0], shape[1], 1, 1])
        noise = paddle.where(inside(boxes[:, k], *shape[2:]).unsqueeze(1), colour, noise)
    return noise


def erase(images, boxes, noise):
    """Put noise into the boxes [B, count, 4] (top, left, height, width) of normalised images [B, 3, H, W]."""
    import paddle

    from ppssl.data.device import inside

    erased = inside(boxes, *images.shape[2:]).any(axis=1, keepdim=True)                        # [B, 1, H, W]
    return paddle.where(erased, noise.astype(images.dtype), images)
