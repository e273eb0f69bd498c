"""`python -m ppssl.attention CKPT IMAGE...`: where a ViT backbone looks, one row per image, one column per head of its last block."""
import argparse
import sys

import numpy as np
import paddle
import paddle.nn.functional as F

from ppssl.backbone import input_shape, load_backbone
from ppssl.command import refusing
from ppssl.data.device import normalize
from ppssl.data.images import BadImage, decode
from ppssl.data.transforms import EvalTransform
from ppssl.errors import BadRequest
from ppssl.models.convvit import ConvViT
from ppssl.visualize import picture, write_png

CLS = "attention of the cls token, last block, each head scaled to its largest"
RECEIVED = "mean attention that a patch receives (no cls token), last block, each head scaled to its largest"


def weights_of(attention, x):
    """What an attention layer weighs its values with, for its input x [B, N, D]: [B, heads, N, N], rows sum to 1."""
    query, key, _ = (t.transpose([0, 2, 1, 3]) for t in attention.split_heads(x))              # [B, heads, N, d]
    return F.softmax(paddle.matmul(query, key, transpose_y=True) * query.shape[-1] ** -0.5, axis=-1)


def last_attention(backbone):
    """The attention layer of a backbone's last block. Raises BadRequest where it has none."""
    blocks = getattr(backbone, "blocks3" if isinstance(backbone, ConvViT) else "blocks", None)
    if blocks is None:
        raise BadRequest(f"a {type(backbone).__name__} has no attention: give a ViT or a ConvViT")
    return blocks[-1].attn


def last_weights(backbone, images):
    """The attention of a backbone's last block on images [B, C, H, W] normalised: [B, heads, N, N]."""
    layer, seen = last_attention(backbone), []
    hook = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    try:
        backbone.forward_features(images)
    finally:
        hook.remove()
    return weights_of(layer, seen[0])


@paddle.no_grad()
def attention_maps(backbone, images) -> tuple[np.ndarray, str]:
    """How much each patch is looked at: float32 [B, heads, h, w], and what that means. images [B, C, H, W] normalised.

    With a cls token it is its attention; a ConvViT has none, so it is the mean over all patches that look.
    """
    weights = last_weights(backbone, images)
    if isinstance(backbone, ConvViT):
        looked_at, caption = weights.mean(2), RECEIVED
    else:
        looked_at, caption = weights[:, :, 0, 1:], CLS
    return looked_at.reshape([*looked_at.shape[:2], *backbone.grid]).numpy(), caption


def coloured(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """maps [..., h, w] >= 0 -> colours float32 [..., H, W, 3] in 0..1, bright where a map is near its own largest."""
    import cv2

    def paint(values: np.ndarray) -> np.ndarray:
        gray = np.uint8(255 * values / values.max() + 0.5)
        large = cv2.resize(gray, size[::-1], interpolation=cv2.INTER_NEAREST)
        return cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS)[:, :, ::-1] / np.float32(255)
    flat = maps.reshape(-1, *maps.shape[-2:])
    return np.stack([paint(values) for values in flat]).reshape(*maps.shape[:-2], *size, 3)


def panes(backbone, images: list[np.ndarray]) -> tuple[np.ndarray, str]:
    """The picture and its heads' maps, float32 [B, 1 + heads, H, W, 3] in 0..1, and the caption. images: decoded, uint8."""
    last_attention(backbone)                              # refuses before it is asked for an image size
    size = input_shape(backbone)[1:]
    transform = EvalTransform(size, crop_pct=1.0)
    cropped = np.stack([transform(image) for image in images])                                 # [B, H, W, 3] uint8
    maps, caption = attention_maps(backbone, normalize(paddle.to_tensor(cropped), backbone.mean, backbone.std))
    original = cropped[:, None] / np.float32(255)
    return np.concatenate([original, coloured(maps, size)], axis=1), caption


@refusing(BadImage, OSError)
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ppssl.attention", description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint, a run folder (its newest one), or any file the converter reads")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("-o", "--output", default="attention.png", help="picture to write (default: %(default)s)")
    args = parser.parse_args(argv)
    rows, caption = panes(load_backbone(args.checkpoint), [decode(path) for path in args.images])
    titles = ["picture", *(f"head {i + 1}" for i in range(rows.shape[1] - 1))]
    write_png(args.output, picture(rows, caption, titles))
    print(f"{args.output}: {len(rows)} images; {caption}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
