"""Hybrid convolution-transformer encoder of ConvMAE (Gao et al., arXiv 2205.03892) and its classifier.

Stages 1 and 2 are convolutional, stage 3 is a vision transformer on the tokens that are left. Feature maps are kept
token by token (see `nested.py`), so that a masked image costs what its visible tokens cost.
"""
from itertools import accumulate, repeat
from math import prod
from operator import mul

import paddle
from paddle import nn

from ppssl.errors import BadRequest
from ppssl.models.cpu import LayerNorm, Linear, gelu, linear
from ppssl.models.depthwise import DepthwiseConv
from ppssl.models.layers import Block, conv_default, drop_path, linear_drop_path, normal, pair, token
from ppssl.models.masking import patchify
from ppssl.models.nested import Rows, TokenMap
from ppssl.models.registry import register

BASE = dict(patch_size=(4, 2, 2), embed_dim=(256, 384, 768), depth=(2, 2, 11), num_heads=12, mlp_ratio=(4, 4, 4))
TINY = dict(patch_size=(1, 2, 2), embed_dim=(32, 64, 128), depth=(1, 1, 3), num_heads=4, mlp_ratio=(4, 4, 4))
CONV_EPS = 1e-5                                           # of the norms in stages 1 and 2 and in the patch embeddings


class TokenConv(nn.Conv2D):
    """A convolution whose windows are whole groups of rows, as a matrix product: [B, R, in] -> [B, R / positions, out].

    sides: of a window's nested groups, the outermost first; none for a 1x1 convolution.
    """

    def __init__(self, in_chans: int, out_chans: int, sides: tuple[int, ...] = (), init=None):
        kernel = prod(sides)
        default = conv_default(in_chans * kernel ** 2)
        super().__init__(in_chans, out_chans, kernel, kernel, weight_attr=init or default, bias_attr=default)
        self.sides = sides

    def matrix(self):
        """The weight [out, in, k, k] as [positions in nested order * in, out]."""
        n, (out_chans, in_chans) = len(self.sides), self.weight.shape[:2]
        weight = self.weight.reshape([out_chans, in_chans, *self.sides, *self.sides])
        rows_and_columns = [axis for i in range(n) for axis in (2 + i, 2 + n + i)]
        return weight.transpose([*rows_and_columns, 1, 0]).reshape([-1, out_chans])

    def forward(self, x):
        matrix = self.matrix()
        return linear(x.reshape([x.shape[0], -1, matrix.shape[0]]), matrix, self.bias)


class StageEmbed(nn.Layer):
    """The entry of a stage: convolution over whole groups, norm, GELU. [B, R, in] -> [B, R / side**2, dim]."""

    def __init__(self, in_chans: int, dim: int, side: int, init=None):
        super().__init__()
        self.proj = TokenConv(in_chans, dim, (side,), init)
        self.norm = LayerNorm(dim, epsilon=CONV_EPS)

    def forward(self, x):
        return gelu(self.norm(self.proj(x)))


class ConvMlp(nn.Layer):
    """1x1 convolution, GELU, 1x1 convolution: [..., D] -> [..., D]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = TokenConv(dim, hidden)
        self.fc2 = TokenConv(hidden, dim)

    def forward(self, x):
        return self.fc2(gelu(self.fc1(x)))


class ConvBlock(nn.Layer):
    """Pre-norm block whose token mixer is a 5x5 depthwise convolution between 1x1 ones. Rows [B, R, D] -> the same.

    drop_path: rate at which each of the two branches is dropped per sample while training.
    """

    def __init__(self, dim: int, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = LayerNorm(dim, epsilon=CONV_EPS)
        self.conv1 = TokenConv(dim, dim)
        self.conv2 = TokenConv(dim, dim)
        self.attn = DepthwiseConv(dim)
        self.norm2 = LayerNorm(dim, epsilon=CONV_EPS)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, x, rows: Rows, noise=None):
        """rows: where x lies; noise: [B, 2] uniform, deciding which samples lose the first and the second branch."""
        rate = self.drop_path if self.training else 0.0
        first, second = (None, None) if noise is None else noise.unbind(1)
        x = x + drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)), rows)), rate, first)
        return x + drop_path(self.mlp(self.norm2(x)), rate, second)


def stage_sizes(img_size, patch_size: tuple[int, ...]) -> list[tuple[int, int]]:
    """The input size (height, width) of each stage from the image's, or from the official list of all stages' sizes.

    Raises BadRequest where a size is not a multiple of the strides or the list does not fit them.
    """
    listed = not isinstance(img_size, int) and len(img_size) == len(patch_size)
    given = [pair(s) for s in img_size] if listed else [pair(img_size)]
    height, width = given[0]
    stride = prod(patch_size)
    if height % stride or width % stride:
        raise BadRequest(f"image size {height}x{width} is not a multiple of the total stride {stride}")
    sizes = [(height // s, width // s) for s in (1, *accumulate(patch_size[:-1], mul))]
    if given not in (sizes, sizes[:1]):
        raise BadRequest(f"stages of sizes {given} do not follow from patch sizes {patch_size}: expected {sizes}")
    return sizes


class ConvEncoder(nn.Layer):
    """Stages 1 to 3 up to the last norm. Subclasses own the position table and what follows.

    img_size: the image's side, (height, width), or the official list of every stage's side. patch_size (strides),
    embed_dim, depth and mlp_ratio hold a number for each stage. fuse: with the convolutions that carry stages 1 and 2
    to the output. init, embed_init: initialisers of the Linear weights and of stage 3's patch convolution.
    """

    def __init__(self, img_size, patch_size, in_chans: int, embed_dim, depth, num_heads: int, mlp_ratio, eps: float,
                 drop_path_rate: float, fuse: bool, init, embed_init):
        super().__init__()
        first, second, third = patch_size
        self.img_size = stage_sizes(img_size, tuple(patch_size))[0]
        self.patch_size = (prod(patch_size),) * 2
        self.grid = tuple(s // prod(patch_size) for s in self.img_size)
        self.maps = (TokenMap(self.grid, (third, second)), TokenMap(self.grid, (third,)))
        rates = iter(linear_drop_path(drop_path_rate, sum(depth)))
        self.patch_embed1 = StageEmbed(in_chans, embed_dim[0], first)
        self.patch_embed2 = StageEmbed(embed_dim[0], embed_dim[1], second)
        self.patch_embed3 = StageEmbed(embed_dim[1], embed_dim[2], third, embed_init)
        self.patch_embed4 = Linear(embed_dim[2], embed_dim[2], weight_attr=init)
        if fuse:
            self.stage1_output_decode = TokenConv(embed_dim[0], embed_dim[2], (third, second))
            self.stage2_output_decode = TokenConv(embed_dim[1], embed_dim[2], (third,))
        self.blocks1 = nn.LayerList(
            [ConvBlock(embed_dim[0], mlp_ratio[0], next(rates)) for _ in range(depth[0])])
        self.blocks2 = nn.LayerList(
            [ConvBlock(embed_dim[1], mlp_ratio[1], next(rates)) for _ in range(depth[1])])
        self.blocks3 = nn.LayerList(
            [Block(embed_dim[2], num_heads, mlp_ratio[2], eps, next(rates), init) for _ in range(depth[2])])

    @property
    def num_patches(self) -> int:
        return prod(self.grid)

    def all_visible(self, batch: int):
        """ids_keep and ids_restore [B, N] of images without a mask."""
        ids = paddle.arange(self.num_patches).expand([batch, -1])
        return ids, ids

    def pixels(self, images, rows: Rows):
        """The pixels of stage 1's positions at the visible tokens: [M, K * P, side * side * C]."""
        given = tuple(images.shape[2:])
        if given != self.img_size:
            raise BadRequest(f"the model is built for {self.img_size} images and was given {given}: set --input_size")
        cells = patchify(images, self.patch_embed1.proj.sides * 2).flatten(0, 1)
        return paddle.gather(cells, rows.places(images.shape[0])).reshape([rows.batch, -1, cells.shape[1]])

    def encode(self, images, ids_keep, ids_restore, positions, noise=None):
        """What the three stages put out at the visible tokens: [M, K * P1, D1], [M, K * P2, D2], [M, K, D].

        images [B, C, H, W]; ids_keep [M, K], ids_restore [M, N], M a multiple of B: sample m is a view of image m % B;
        positions [M or 1, K, D]; noise [M, blocks, 2] uniform, for drop path.
        """
        noises = repeat(None) if noise is None else iter(noise.unbind(1))
        rows1, rows2 = (Rows(m, ids_keep, ids_restore) for m in self.maps)
        stage1 = self.patch_embed1(self.pixels(images, rows1))
        for block in self.blocks1:
            stage1 = block(stage1, rows1, next(noises))
        stage2 = self.patch_embed2(stage1)
        for block in self.blocks2:
            stage2 = block(stage2, rows2, next(noises))
        x = self.patch_embed4(self.patch_embed3(stage2)) + positions
        for block in self.blocks3:
            x = block(x, next(noises))
        return stage1, stage2, x


class ConvViT(ConvEncoder):
    """Classifier with a linear head on the mean token (`global_pool`) or on the first, which is the top-left patch.

    skip_first leaves that patch out of the mean, as EasyCV's finetuned FastConvMAE weights expect.
    Source: Alpha-VL/ConvMAE `models_convvit.py`; alibaba/EasyCV `conv_mae_vit.py`.
    """

    def __init__(self, img_size=224, *, patch_size, in_chans: int = 3, num_classes: int = 1000, embed_dim, depth,
                 num_heads: int, mlp_ratio, eps: float = 1e-6, drop_path_rate: float = 0.0,
                 global_pool: bool = True, skip_first: bool = False):
        init = normal()
        super().__init__(img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, eps, drop_path_rate,
                         fuse=False, init=init, embed_init=None)
        self.global_pool, self.first = global_pool, int(skip_first)
        self.pos_embed = token(self, 1, self.num_patches, embed_dim[2])
        if not global_pool:
            self.norm = LayerNorm(embed_dim[2], epsilon=eps)
        self.head = Linear(embed_dim[2], num_classes, weight_attr=init) if num_classes else nn.Identity()
        if global_pool:
            self.fc_norm = LayerNorm(embed_dim[2], epsilon=eps)

    pretraining_only = ("mask_token", "decoder_", "norm.", "stage1_output_decode.", "stage2_output_decode.")
    not_pretrained = ("head.", "fc_norm.")
    no_weight_decay = ("pos_embed",)

    @property
    def num_blocks(self) -> int:
        return len(self.blocks1) + len(self.blocks2) + len(self.blocks3)

    @property
    def num_layers(self) -> int:
        """Layers of layer-wise learning-rate decay: everything before stage 3's blocks, these, head."""
        return len(self.blocks3) + 1

    def layer_of(self, name: str) -> int:
        """The layer of a parameter: i + 1 block i of stage 3, 0 what comes before it, `num_layers` norm and head."""
        if name.startswith(("pos_embed", "patch_embed", "blocks1.", "blocks2.")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks3.") else self.num_layers

    def forward_features(self, images, noise=None):
        """images [B, C, H, W] -> features [B, D]. noise: [B, blocks, 2] uniform, for drop path."""
        return self.pool(self.encode(images, *self.all_visible(images.shape[0]), self.pos_embed, noise)[2])

    def pool(self, x):
        """tokens [B, N, D] -> features [B, D]."""
        return self.fc_norm(x[:, self.first:].mean(1)) if self.global_pool else self.norm(x)[:, 0]

    def forward(self, images, noise=None):
        """images [B, C, H, W] -> logits [B, classes]."""
        return self.head(self.forward_features(images, noise))


@register("classifier", "convmae")
def convvit_tiny_patch4(**kwargs):
    """The encoder of convmae_convvit_tiny_patch4 and fastconvmae_convvit_tiny_patch4."""
    return ConvViT(**TINY | dict(img_size=32, num_classes=10) | kwargs)


@register("classifier", "convmae")
def convvit_base_patch16(**kwargs):
    return ConvViT(**BASE | kwargs)


@register("classifier", "convmae")
def convvit_base_patch16_easycv(**kwargs):
    """convvit_base_patch16 with EasyCV's pooling, for weights that EasyCV has finetuned."""
    return ConvViT(**BASE | dict(skip_first=True) | kwargs)
