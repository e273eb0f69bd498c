"""ResNet (He et al., arXiv 1512.03385), with torchvision's names; the encoder and the linear classifier of BYOL."""
import math
import re
from collections.abc import Mapping, Sequence

from paddle import nn
from paddle.nn import initializer as I

from ppssl.models.batch_norm import BatchNorm
from ppssl.models.convolution import Conv2D
from ppssl.models.cpu import Linear
from ppssl.models.layers import conv_default
from ppssl.models.registry import register

ONLINE = "online_network.encoder."                        # before the encoder's names in a BYOL model

def conv(in_chans: int, out_chans: int, kernel: int, stride: int = 1) -> Conv2D:
    """Convolution without bias that keeps the size but for the stride; Kaiming normal over its outputs."""
    init = I.Normal(0.0, math.sqrt(2 / (out_chans * kernel * kernel)))
    return Conv2D(in_chans, out_chans, kernel, stride, kernel // 2, weight_attr=init)


def shortcut(in_chans: int, out_chans: int, stride: int) -> nn.Sequential:
    """What brings a stage's input to the shape of its first block's output."""
    return nn.Sequential(conv(in_chans, out_chans, 1, stride), BatchNorm(out_chans))


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions: [B, in, H, W] -> [B, planes, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, in_chans: int, planes: int, expansion: int, stride: int, downsample: bool):
        super().__init__()
        self.conv1 = conv(in_chans, planes, 3, stride)
        self.bn1 = BatchNorm(planes)
        self.conv2 = conv(planes, planes * expansion, 3)
        self.bn2 = BatchNorm(planes * expansion)
        self.downsample = shortcut(in_chans, planes * expansion, stride) if downsample else None

    def forward(self, x):
        out = self.bn1.then_relu(self.conv1(x))
        return self.bn2.then_relu(self.conv2(out), x if self.downsample is None else self.downsample(x))


class Bottleneck(nn.Layer):
    """1x1, 3x3 (with the stride), 1x1 convolution: [B, in, H, W] -> [B, planes * expansion, H/stride, W/stride]."""

    expansion = 4

    def __init__(self, in_chans: int, planes: int, expansion: int, stride: int, downsample: bool):
        super().__init__()
        self.conv1 = conv(in_chans, planes, 1)
        self.bn1 = BatchNorm(planes)
        self.conv2 = conv(planes, planes, 3, stride)
        self.bn2 = BatchNorm(planes)
        self.conv3 = conv(planes, planes * expansion, 1)
        self.bn3 = BatchNorm(planes * expansion)
        self.downsample = shortcut(in_chans, planes * expansion, stride) if downsample else None

    def forward(self, x):
        out = self.bn1.then_relu(self.conv1(x))
        out = self.bn2.then_relu(self.conv2(out))
        return self.bn3.then_relu(self.conv3(out), x if self.downsample is None else self.downsample(x))


class ResNet(nn.Layer):
    """A stem, stages of residual blocks, the mean over positions, a linear head.

    blocks, planes, strides: per stage. The first block of a stage has a shortcut of its own where the shape changes.
    Source: torchvision `models/resnet.py`.
    """

    pretraining_only = ()
    not_pretrained = ("fc.",)

    def __init__(self, block: type, blocks: Sequence[int], planes: Sequence[int] = (64, 128, 256, 512),
                 strides: Sequence[int] = (1, 2, 2, 2), stem: int = 64, stem_stride: int = 2,
                 expansion: int | None = None, num_classes: int = 1000):
        super().__init__()
        expansion = block.expansion if expansion is None else expansion
        self.conv1 = conv(3, stem, 7, stem_stride)
        self.bn1 = BatchNorm(stem)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2D(3, 2, 1)
        width = stem
        for i, (depth, narrow, stride) in enumerate(zip(blocks, planes, strides, strict=True), start=1):
            setattr(self, f"layer{i}", stage(block, depth, width, narrow, expansion, stride))
            width = narrow * expansion
        self.avgpool = nn.AdaptiveAvgPool2D(1)
        self.width, init = width, conv_default(width)
        self.fc = Linear(width, num_classes, weight_attr=init, bias_attr=init)

    @property
    def head(self) -> Linear:
        return self.fc

    def forward_features(self, images):
        """images [B, 3, H, W] -> pooled features [B, width]."""
        x = images
        for layer in list(self.children())[:-1]:
            x = layer(x)
        return x.flatten(1)

    def forward(self, images):
        """images [B, 3, H, W] -> logits [B, classes]."""
        return self.fc(self.forward_features(images))


def stage(block: type, depth: int, in_chans: int, planes: int, expansion: int, stride: int) -> nn.Sequential:
    """`depth` blocks, of which the first changes size and width."""
    width = planes * expansion
    first = block(in_chans, planes, expansion, stride, downsample=stride != 1 or in_chans != width)
    return nn.Sequential(first, *[block(width, planes, expansion, 1, downsample=False) for _ in range(depth - 1)])


def encoder_of(resnet: ResNet) -> nn.Sequential:
    """Everything before the head as BYOL names it: children by number, 0 conv1, 1 bn1, 4 and on the stages.

    [B, 3, H, W] -> [B, width, 1, 1]. Source: blankWorld/BYOL-PyTorch `model/basic_modules.py`.
    """
    return nn.Sequential(*list(resnet.children())[:-1])


def torchvision_name(key: str) -> str:
    """A key of `encoder_of` -> torchvision's: 1.weight -> bn1.weight, 4.0.conv1.weight -> layer1.0.conv1.weight."""
    number, rest = key.split(".", 1)
    return f"{('conv1', 'bn1')[int(number)] if number in '01' else f'layer{int(number) - 3}'}.{rest}"


def online_encoder(tensors: Mapping) -> dict:
    """Of BYOL's networks the online encoder's tensors, under torchvision's names; none of any other network's."""
    return {torchvision_name(k.removeprefix(ONLINE)): v for k, v in tensors.items() if k.startswith(ONLINE)}


def encoder_name(key: str) -> str:
    """torchvision's key -> that of `encoder_of`, inverse to `torchvision_name`. Raises ValueError for the head's keys."""
    found = re.fullmatch(r"(conv1|bn1|layer(\d+))\.(.*)", key)
    if not found:
        raise ValueError(f"{key} is no tensor of a ResNet encoder")
    name, number, rest = found.groups()
    return f"{('conv1', 'bn1').index(name) if number is None else int(number) + 3}.{rest}"


@register("classifier", "byol")
def resnet_tiny(**kwargs):
    """For the embedded 32 px demo set and the tests: stages at 8, 4 and 2 px; not a published size."""
    return ResNet(**dict(block=BasicBlock, blocks=(1, 1, 1), planes=(32, 64, 128), strides=(1, 2, 2), stem=32,
                         num_classes=10) | kwargs)


@register("classifier", "byol")
def resnet18(**kwargs):
    return ResNet(BasicBlock, (2, 2, 2, 2), **kwargs)


@register("classifier", "byol")
def resnet34(**kwargs):
    return ResNet(BasicBlock, (3, 4, 6, 3), **kwargs)


@register("classifier", "byol")
def resnet50(**kwargs):
    return ResNet(Bottleneck, (3, 4, 6, 3), **kwargs)


@register("classifier", "byol")
def resnet101(**kwargs):
    return ResNet(Bottleneck, (3, 4, 23, 3), **kwargs)
