"""`python -m ppssl.visualize RUN IMAGE...`: original | masked | reconstruction | reconstruction + visible, one row per image."""
import argparse
import sys

import numpy as np
import paddle

from convert.formats import Refused
from ppssl import dist
from ppssl.data.images import BadImage, decode
from ppssl.data.loader import collate
from ppssl.data.transforms import EvalTransform
from ppssl.engine.rebuild import rebuild
from ppssl.errors import BadRequest

GAP, GRAY, CAPTION_HEIGHT = 4, 0.5, 16
PANES = ("original", "masked", "reconstruction", "reconstruction + visible")
MODES = {"pixels": "the model predicts pixels",
         "visible": "the model predicts normalised patches, shown with the mean and spread of the visible ones",
         "target": "the model predicts normalised patches, shown with the hidden patches' own mean and spread"}


@paddle.no_grad()
def panes(method, images: list[np.ndarray], seed: int = 0, unnorm: str = "visible") -> tuple[np.ndarray, str]:
    """Four panes per image, float32 [B, 4, H, W, 3] in 0..1, and how to read them.

    images: decoded, uint8 [h, w, 3]. unnorm: whose statistics undo the normalisation of patches, where there is one:
    "visible" (honest: what the model was shown) or "target" (the hidden patches' own, as the paper's figures). Raises
    BadRequest where the method predicts no pixels.
    """
    method.model.eval()
    method.transform = EvalTransform(method.config.data.input_size, crop_pct=1.0)
    samples = [method.sample(image, 0, np.random.default_rng([seed, i])) for i, image in enumerate(images)]
    batch = {k: paddle.to_tensor(v) for k, v in collate(samples).items()}
    inputs = method.images(batch)
    pixels, mask, normalised = method.reconstruct(batch)
    hidden = spread_mask(mask, inputs.shape[2:])                                               # [B, 1, H, W]
    mode = unnorm if normalised else "pixels"
    pixels = undo_normalisation(pixels, inputs, mask, mode)
    rows = [method.denormalize(x) for x in (inputs, pixels)]
    original, predicted = rows
    masked = original * (1 - hidden) + GRAY * hidden
    pasted = original * (1 - hidden) + predicted * hidden
    stack = paddle.stack([original, masked, predicted, pasted], axis=1)                        # [B, 4, 3, H, W]
    return stack.transpose([0, 1, 3, 4, 2]).clip(0, 1).numpy(), MODES[mode]


def grid_of(patches: int, size) -> tuple[int, int]:
    """The patch grid (rows, columns) of an image (height, width) cut into that many square patches."""
    side = round((size[0] * size[1] / patches) ** 0.5)
    return size[0] // side, size[1] // side


def spread_mask(mask, size):
    """mask [B, N] -> [B, 1, H, W]."""
    rows, columns = grid_of(mask.shape[1], size)
    image = mask.reshape([-1, 1, rows, columns])
    return image.repeat_interleave(size[0] // rows, axis=2).repeat_interleave(size[1] // columns, axis=3)


def undo_normalisation(pixels, inputs, mask, mode: str):
    """Pixels of normalised patches back to the images' scale."""
    if mode == "pixels":
        return pixels
    from ppssl.models.masking import patchify, unpatchify

    grid = grid_of(mask.shape[1], inputs.shape[2:])
    patch = (inputs.shape[2] // grid[0], inputs.shape[3] // grid[1])
    truth = patchify(inputs, patch)
    mean, std = truth.mean(-1, keepdim=True), paddle.sqrt(truth.var(-1, keepdim=True) + 1e-6)  # [B, N, 1]
    if mode == "visible":
        shown = (1 - mask).unsqueeze(-1)
        mean, std = ((x * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True) for x in (mean, std))
    return unpatchify(patchify(pixels, patch) * std + mean, patch, grid)


def picture(rows: np.ndarray, caption: str) -> np.ndarray:
    """Panes [B, 4, H, W, 3] in 0..1 -> one uint8 image with a title over each column and the caption below."""
    from PIL import Image, ImageDraw

    count, columns, height, width, _ = rows.shape
    scale = max(1, 128 // height)
    height, width = height * scale, width * scale
    canvas = np.full((count * (height + GAP) + 2 * CAPTION_HEIGHT, columns * (width + GAP), 3), 255, np.uint8)
    for i in range(count):
        for j in range(columns):
            pane = (255 * rows[i, j] + 0.5).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
            top, left = CAPTION_HEIGHT + i * (height + GAP), j * (width + GAP)
            canvas[top:top + height, left:left + width] = pane
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for j, title in enumerate(PANES):
        draw.text((j * (width + GAP) + 2, 2), title, fill=0)
    draw.text((2, canvas.shape[0] - CAPTION_HEIGHT + 2), caption, fill=0)
    return np.asarray(image)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ppssl.visualize", description=__doc__)
    parser.add_argument("run", help="a pretraining checkpoint, or a run folder (its newest one)")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("-o", "--output", default="reconstruction.png", help="picture to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--unnorm", choices=("visible", "target"), default="visible",
                        help="whose mean and spread undo the normalisation of patches (norm_pix_loss models)")
    args = parser.parse_args(argv)
    try:
        dist.start(None)
        rows, caption = panes(rebuild(args.run), [decode(path) for path in args.images], args.seed, args.unnorm)
    except (BadRequest, Refused, BadImage, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import cv2

    if not cv2.imwrite(args.output, picture(rows, caption)[:, :, ::-1]):
        print(f"error: cannot write {args.output}", file=sys.stderr)
        return 2
    print(f"{args.output}: {len(rows)} images; {caption}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
