"""ConvViT on whole feature maps: the same numbers as token by token with nothing masked, in operations that a graph can hold."""
import paddle.nn.functional as F
from paddle import nn

from ppssl.models.convvit import ConvBlock, ConvViT, StageEmbed
from ppssl.models.depthwise import REACH


class WholeMapConvViT(nn.Layer):
    """A trained ConvViT for inference: [B, C, H, W] -> logits [B, classes], or features where it has no head.

    Training on visible tokens alone needs maps kept token by token, whose index tables depend on the batch; a graph that
    is exported for any batch has plain convolutions instead. Parameters are shared with `convvit`.
    """

    def __init__(self, convvit: ConvViT):
        super().__init__()
        self.convvit = convvit

    def forward(self, images):
        model = self.convvit
        x = stage(model.patch_embed1, model.blocks1, images)
        x = stage(model.patch_embed2, model.blocks2, x)
        x = model.patch_embed4(stage(model.patch_embed3, (), x).flatten(2).transpose([0, 2, 1])) + model.pos_embed
        for block in model.blocks3:
            x = block(x)
        return model.head(model.pool(x))


def stage(embed: StageEmbed, blocks, x):
    """[B, C, H, W] -> [B, D, H / side, W / side]."""
    x = F.gelu(over_channels(embed.norm, convolve(embed.proj, x, stride=embed.proj.weight.shape[-1])))
    for block in blocks:
        x = mix(block, x)
    return x


def mix(block: ConvBlock, x):
    """One convolutional block over the map [B, C, H, W]."""
    mixed = convolve(block.attn, convolve(block.conv1, over_channels(block.norm1, x)), padding=REACH, groups=x.shape[1])
    x = x + convolve(block.conv2, mixed)
    return x + convolve(block.mlp.fc2, F.gelu(convolve(block.mlp.fc1, over_channels(block.norm2, x))))


def convolve(layer: nn.Conv2D, x, **kwargs):
    return F.conv2d(x, layer.weight, layer.bias, **kwargs)


def over_channels(norm: nn.LayerNorm, x):
    """A norm over the channels of [B, C, H, W]."""
    return norm(x.transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2])
