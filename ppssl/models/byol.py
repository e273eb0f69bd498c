"""BYOL (Grill et al., "Bootstrap Your Own Latent", arXiv 2006.07733): a network predicts a moving average of itself."""
from collections.abc import Callable

import paddle.nn.functional as F
from paddle import nn

from ppssl.models.batch_norm import BatchNorm
from ppssl.models.cpu import Linear
from ppssl.models.layers import conv_default
from ppssl.models.registry import register
from ppssl.models.resnet import ResNet, encoder_of, resnet18, resnet34, resnet50, resnet101, resnet_tiny
from ppssl.optim.ema import follow


class MLP(nn.Layer):
    """Linear, batch norm, ReLU, Linear: [B, in] -> [B, out]. Projector and predictor."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        first, second = conv_default(in_dim), conv_default(hidden_dim)         # PyTorch's rule for Linear as well
        self.l1 = Linear(in_dim, hidden_dim, weight_attr=first, bias_attr=first)
        self.bn1 = BatchNorm(hidden_dim)
        self.l2 = Linear(hidden_dim, out_dim, weight_attr=second, bias_attr=second)

    def forward(self, x):
        return self.l2(self.bn1.then_relu(self.l1(x)))


class EncoderwithProjection(nn.Layer):
    """ResNet encoder and projector: images [B, 3, H, W] -> projection [B, D]. `projetion` is the official spelling."""

    def __init__(self, resnet: ResNet, hidden_dim: int, dim: int):
        super().__init__()
        self.encoder = encoder_of(resnet)
        self.projetion = MLP(resnet.width, hidden_dim, dim)

    def features(self, images):
        """images [B, 3, H, W] -> pooled features [B, width]."""
        return self.encoder(images).flatten(1)

    def forward(self, images):
        return self.projetion(self.features(images))


class Predictor(nn.Layer):
    """[B, D] -> [B, D]."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.predictor = MLP(dim, hidden_dim, dim)

    def forward(self, x):
        return self.predictor(x)


class BYOLModel(nn.Layer):
    """Online and target network of the same shape, and the predictor on the online one. The target takes no gradients.

    The target starts apart from the online network: `align_target` once the weights are there.
    Source: paper section 3.1; blankWorld/BYOL-PyTorch `model/byol_model.py`.
    """

    def __init__(self, resnet: Callable[[], ResNet], dim: int = 256, projection_hidden: int = 4096,
                 prediction_hidden: int = 4096):
        super().__init__()
        self.online_network = EncoderwithProjection(resnet(), projection_hidden, dim)
        self.target_network = EncoderwithProjection(resnet(), projection_hidden, dim)
        self.predictor = Predictor(dim, prediction_hidden)
        for p in self.target_network.parameters():
            p.stop_gradient, p.trainable = True, False

    def forward(self, images):
        """images [B, 3, H, W] -> predictions [B, D] of the target's projections."""
        return self.predictor(self.online_network(images))

    def features(self, images):
        """images [B, 3, H, W] -> [B, width]: what the online encoder is trained for."""
        return self.online_network.features(images)

    def update_target(self, momentum: float) -> None:
        """target = momentum * target + (1 - momentum) * online; running statistics stay each network's own."""
        follow(self.target_network.parameters(), self.online_network.parameters(), momentum)

    def align_target(self) -> None:
        """Let the target start where the online network does."""
        self.update_target(0.0)


def byol_loss(predictions, targets):
    """2 - 2 * mean cosine of rows [B, D], in float32; a zero row counts as orthogonal."""
    q, z = (F.normalize(x.astype("float32"), axis=1) for x in (predictions, targets))
    return 2 - 2 * (q * z).sum() / q.shape[0]


@register("pretrain", "byol")
def byol_resnet_tiny(**kwargs):
    """For the embedded 32 px demo set and the tests; not a published size."""
    return BYOLModel(resnet_tiny, **dict(dim=32, projection_hidden=256, prediction_hidden=256) | kwargs)


@register("pretrain", "byol")
def byol_resnet18(**kwargs):
    return BYOLModel(resnet18, **kwargs)


@register("pretrain", "byol")
def byol_resnet34(**kwargs):
    return BYOLModel(resnet34, **kwargs)


@register("pretrain", "byol")
def byol_resnet50(**kwargs):
    return BYOLModel(resnet50, **kwargs)


@register("pretrain", "byol")
def byol_resnet101(**kwargs):
    return BYOLModel(resnet101, **kwargs)
