"""RandAugment as in timm 0.3.2 (`data/auto_augment.py`): 'rand-m9-mstd0.5-inc1' and its relatives."""
import re
from dataclasses import dataclass

import numpy as np

from ppssl.data.color import apply_table, brightness, contrast, saturation, solarize
from ppssl.errors import BadRequest

MAX_LEVEL = 10.0
OP_PROBABILITY = 0.5

OP_WEIGHTS = {                                            # the operations, and how often a "w0" policy draws each
    "AutoContrast": 0.025, "Equalize": 0.005, "Invert": 0.0, "Rotate": 0.3, "Posterize": 0.0, "Solarize": 0.005,
    "SolarizeAdd": 0.005, "Color": 0.025, "Contrast": 0.005, "Brightness": 0.005, "Sharpness": 0.025, "ShearX": 0.2,
    "ShearY": 0.2, "TranslateXRel": 0.1, "TranslateYRel": 0.1}
LARGEST = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}  # at MAX_LEVEL


@dataclass(frozen=True)
class Policy:
    """layers operations per image, each run half of the time at level N(magnitude, std) clipped to 0..10."""
    magnitude: float = MAX_LEVEL
    std: float = 0.0
    layers: int = 2
    increasing: bool = False                              # the variants whose effect grows with the level
    weighted: bool = False                                # draw by OP_WEIGHTS without repetition, not uniformly


Drawn = tuple[tuple[str, float | None], ...]              # (operation, final argument) in the order of application


def parse_policy(text: str) -> Policy:
    """'rand' and '-'-separated m<level> n<operations> mstd<deviation> inc<any number> w0, in any order.

    As in timm every 'inc' token means increasing, 'inc0' too. Raises BadRequest for any other policy or token.
    """
    name, *tokens = text.split("-")
    if name != "rand":
        raise BadRequest(f"auto-augment policy {text!r} is not supported: use rand-m9-mstd0.5-inc1 or another rand-...")
    fields = {"m": ("magnitude", int), "n": ("layers", int), "mstd": ("std", float),
              "inc": ("increasing", lambda _: True), "w": ("weighted", {"0": True}.__getitem__)}
    found = {}
    for token in tokens:
        try:
            key, value = re.fullmatch(r"([a-z]+)(\d.*)", token).groups()
            field, convert = fields[key]
            found[field] = convert(value)
        except (AttributeError, KeyError, ValueError):
            raise BadRequest(f"unknown part {token!r} of auto-augment policy {text!r}: known are m<int>, n<int>, "
                             "mstd<number>, inc1 and w0") from None
    return Policy(**found)


def draw_ops(policy: Policy, rng: np.random.Generator) -> Drawn:
    """The operations that run on one image, with their arguments (sign included)."""
    weights = np.array(list(OP_WEIGHTS.values())) / sum(OP_WEIGHTS.values()) if policy.weighted else None
    names = rng.choice(list(OP_WEIGHTS), policy.layers, replace=not policy.weighted, p=weights)
    return tuple((str(name), draw_argument(name, policy, rng)) for name in names if rng.random() < OP_PROBABILITY)


def draw_argument(name: str, policy: Policy, rng: np.random.Generator) -> float | None:
    level = min(MAX_LEVEL, max(0.0, rng.normal(policy.magnitude, policy.std)))
    return argument(name, level, policy.increasing, sign=-1 if rng.random() < 0.5 else 1)


def argument(name: str, level: float, increasing: bool, sign: int = 1) -> float | None:
    """What an operation is given at a level 0..10: degrees, a share of the side, a factor, bits kept, a threshold."""
    part = level / MAX_LEVEL
    if name in LARGEST:
        return sign * (part * LARGEST[name])
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return 1.0 + sign * (part * 0.9) if increasing else part * 1.8 + 0.1
    if name == "Posterize":
        return 4 - int(part * 4) if increasing else int(part * 4)
    if name == "Solarize":
        return 256 - int(part * 256) if increasing else int(part * 256)
    return int(part * 110) if name == "SolarizeAdd" else None


def apply_op(image: np.ndarray, name: str, value: float | None, fill: tuple[int, ...],
             interpolation: str = "bicubic") -> np.ndarray:
    """Run one operation on uint8 [H, W, 3]; value as `argument` gives it, fill (RGB) the colour of uncovered pixels."""
    if name in LARGEST:
        return warp(image, name, value, fill, interpolation)
    if name in PICTURE_OPS:
        from PIL import Image

        return np.array(PICTURE_OPS[name](Image.fromarray(image), value))
    return ARRAY_OPS[name](image, value)


def warp(image: np.ndarray, name: str, value: float, fill: tuple[int, ...], interpolation: str) -> np.ndarray:
    """Rotate by degrees about the centre, shear, or shift by a share of the side; positive shifts go left and up.

    PIL does it: its kernel (a = -1), its truncation and its hard edge towards the fill have no equal in OpenCV.
    """
    from PIL import Image

    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    picture = Image.fromarray(image)
    if name == "Rotate":
        return np.array(picture.rotate(value, resample, fillcolor=fill))
    matrix = {"ShearX": (1, value, 0, 0, 1, 0), "ShearY": (1, 0, 0, value, 1, 0),
              "TranslateXRel": (1, 0, value * picture.width, 0, 1, 0),
              "TranslateYRel": (1, 0, 0, 0, 1, value * picture.height)}[name]
    return np.array(picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill))


def auto_contrast(picture, _):
    from PIL import ImageOps

    return ImageOps.autocontrast(picture)


def equalize(picture, _):
    from PIL import ImageOps

    return ImageOps.equalize(picture)


def sharpness(picture, factor):
    from PIL import ImageEnhance

    return ImageEnhance.Sharpness(picture).enhance(factor)


def invert(image, _):
    return 255 - image


def posterize(image, bits):
    """Keep the highest bits (0..4) of every value."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize_add(image, amount):
    """Add amount to the values below 128."""
    value = np.arange(256)
    return apply_table(image, np.where(value < 128, np.minimum(value + amount, 255), value).astype(np.uint8))


PICTURE_OPS = {"AutoContrast": auto_contrast, "Equalize": equalize, "Sharpness": sharpness}
ARRAY_OPS = {"Invert": invert, "Posterize": posterize, "Solarize": solarize, "SolarizeAdd": solarize_add,
             "Color": saturation, "Contrast": contrast, "Brightness": brightness}
