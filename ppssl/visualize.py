"""`python -m ppssl.visualize CKPT IMAGE...`: original | masked | reconstruction | reconstruction + visible, one row per image."""
import argparse
import copy
import sys
import textwrap
from collections.abc import Sequence

import numpy as np
import paddle

from ppssl import dist
from ppssl.command import refusing
from ppssl.data.images import BadImage, decode
from ppssl.data.loader import collate
from ppssl.data.transforms import EvalTransform
from ppssl.errors import BadRequest
from ppssl.models.masking import normalize_patches, patchify, unpatchify
from ppssl.reconstructor import reconstructor

GAP, GRAY = 4, 0.5
LINE_HEIGHT, LETTER_WIDTH = 16, 7                        # of titles and caption
PANES = ("original", "masked", "reconstruction", "reconstruction + visible")
MODES = {"pixels": "the model predicts pixels",
         "visible": "the model predicts normalised patches, shown with the mean and spread of the visible ones",
         "target": "the model predicts normalised patches, shown with the hidden patches' own mean and spread"}


UNTOLD = " (the file does not tell: by what its predictions are closer to)"


@paddle.no_grad()
def panes(method, images: list[np.ndarray], seed: int = 0, unnorm: str = "visible", told: bool = True) -> tuple[np.ndarray, str]:
    """Four panes per image, float32 [B, 4, H, W, 3] in 0..1, and how to read them.

    images: decoded, uint8 [h, w, 3]. unnorm: whose statistics undo the normalisation of patches, where there is one:
    "visible" (honest: what the model was shown) or "target" (the hidden patches' own, as the paper's figures). told:
    whether the method knows if there is one. Raises BadRequest where the method predicts no pixels.
    """
    method = copy.copy(method)                            # whose own transform stays
    method.model.eval()
    method.transform = EvalTransform(method.config.data.input_size, crop_pct=1.0)
    samples = [method.sample(image, 0, np.random.default_rng([seed, i])) for i, image in enumerate(images)]
    batch = {k: paddle.to_tensor(v) for k, v in collate(samples).items()}
    inputs = method.images(batch)
    pixels, mask, normalised = method.reconstruct(batch)
    hidden = spread_mask(mask, inputs.shape[2:])                                               # [B, 1, H, W]
    normalised = normalised if told else predicts_normalised(pixels, inputs, mask)
    mode = unnorm if normalised else "pixels"
    pixels = undo_normalisation(pixels, inputs, mask, mode, per_channel=method.name == "bootmae")
    rows = [method.denormalize(x) for x in (inputs, pixels)]
    original, predicted = rows
    masked = original * (1 - hidden) + GRAY * hidden
    pasted = original * (1 - hidden) + predicted * hidden
    stack = paddle.stack([original, masked, predicted, pasted], axis=1)                        # [B, 4, 3, H, W]
    return stack.transpose([0, 1, 3, 4, 2]).clip(0, 1).numpy(), MODES[mode] + ("" if told else UNTOLD)


def grid_of(patches: int, size) -> tuple[int, int]:
    """The patch grid (rows, columns) of an image (height, width) cut into that many square patches."""
    side = round((size[0] * size[1] / patches) ** 0.5)
    return size[0] // side, size[1] // side


def spread_mask(mask, size):
    """mask [B, N] -> [B, 1, H, W]."""
    rows, columns = grid_of(mask.shape[1], size)
    image = mask.reshape([-1, 1, rows, columns])
    return image.repeat_interleave(size[0] // rows, axis=2).repeat_interleave(size[1] // columns, axis=3)


def patch_of(mask, size) -> tuple[int, int]:
    """The sides of the patches that mask [B, N] stands for in an image (height, width)."""
    rows, columns = grid_of(mask.shape[1], size)
    return size[0] // rows, size[1] // columns


def predicts_normalised(pixels, inputs, mask) -> bool:
    """Whether a prediction of the hidden patches is closer to their normalised pixels than to their pixels.

    Each error is taken relative to the variance of what would be predicted. Arguments as `undo_normalisation`.
    """
    patch, hidden = patch_of(mask, inputs.shape[2:]), mask.unsqueeze(-1)
    truth, pred = patchify(inputs, patch), patchify(pixels, patch)

    def unexplained(target) -> float:
        centre = (target * hidden).mean() / hidden.mean()
        return (((pred - target).square() * hidden).sum() / ((target - centre).square() * hidden).sum()).item()
    return unexplained(normalize_patches(truth)) < unexplained(truth)


def undo_normalisation(pixels, inputs, mask, mode: str, per_channel: bool = False):
    """Pixels of normalised patches back to the images' scale.

    pixels, inputs [B, C, H, W], mask [B, N] with 1 hidden; mode: a key of MODES. per_channel: whether each channel of a
    patch was normalised by itself.
    """
    if mode == "pixels":
        return pixels
    grid, patch = grid_of(mask.shape[1], inputs.shape[2:]), patch_of(mask, inputs.shape[2:])
    batch, places, channels = inputs.shape[0], mask.shape[1], inputs.shape[1]
    shape = [batch, places, -1, channels if per_channel else 1]
    truth, pred = (patchify(x, patch).reshape(shape) for x in (inputs, pixels))                # [B, N, values, groups]
    mean, std = truth.mean(2, keepdim=True), paddle.sqrt(truth.var(2, keepdim=True) + 1e-6)
    if mode == "visible":
        shown = (1 - mask).reshape([batch, places, 1, 1])
        mean, std = ((x * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True) for x in (mean, std))
    return unpatchify((pred * std + mean).reshape([batch, places, -1]), patch, grid)


def picture(rows: np.ndarray, caption: str, titles: Sequence[str] = PANES) -> np.ndarray:
    """Panes [B, K, H, W, 3] in 0..1 -> one uint8 image with a title over each of K columns and the caption below."""
    from PIL import Image, ImageDraw

    count, columns, height, width, _ = rows.shape
    scale = max(1, 128 // height)
    height, width = height * scale, width * scale
    lines = textwrap.wrap(caption, columns * (width + GAP) // LETTER_WIDTH)
    canvas = np.full((count * (height + GAP) + (1 + len(lines)) * LINE_HEIGHT, columns * (width + GAP), 3), 255, np.uint8)
    for i in range(count):
        for j in range(columns):
            pane = (255 * rows[i, j] + 0.5).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
            top, left = LINE_HEIGHT + i * (height + GAP), j * (width + GAP)
            canvas[top:top + height, left:left + width] = pane
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for j, title in enumerate(titles):
        draw.text((j * (width + GAP) + 2, 2), title, fill=0)
    for i, line in enumerate(reversed(lines), start=1):
        draw.text((2, canvas.shape[0] - i * LINE_HEIGHT + 2), line, fill=0)
    return np.asarray(image)


def write_png(path: str, image: np.ndarray) -> None:
    """image [H, W, 3] uint8, RGB. Raises BadRequest where the file cannot be written."""
    import cv2

    try:
        written = cv2.imwrite(path, image[:, :, ::-1])
    except cv2.error:                                     # a name of no known kind of picture
        written = False
    if not written:
        raise BadRequest(f"cannot write {path}: give -o a name that ends in .png, in a folder that is there")


@refusing(BadImage, OSError)
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ppssl.visualize", description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT",
                        help="a pretraining checkpoint of this project or of the authors, or a run folder (its newest one)")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("-o", "--output", default="reconstruction.png", help="picture to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--unnorm", choices=("visible", "target"), default="visible",
                        help="whose mean and spread undo the normalisation of patches (norm_pix_loss models)")
    args = parser.parse_args(argv)
    dist.start(None)
    method, told = reconstructor(args.checkpoint)
    rows, caption = panes(method, [decode(path) for path in args.images], args.seed, args.unnorm, told)
    write_png(args.output, picture(rows, caption))
    print(f"{args.output}: {len(rows)} images; {caption}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
