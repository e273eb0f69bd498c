"""BYOL (blankWorld/BYOL-PyTorch): ResNet encoder with Sequential numbering, projector and predictor."""
import torch.nn.functional as F
from torch import Tensor

from convert.reference.tape import Tape

EPS = 1e-5
STAGES = 6                                                # as many as a network could have


def conv_norm(tape: Tape, conv: str, norm: str, x: Tensor, training: bool, stride: int = 1) -> Tensor:
    padding = tape.weight(f"{conv}.weight").shape[2] // 2
    return tape.batch_norm(norm, tape.conv(conv, x, stride, padding), EPS, training)


def residual(tape: Tape, name: str, x: Tensor, stride: int, training: bool) -> Tensor:
    """torchvision's block: a bottleneck (stride on its 3x3 convolution) or, without conv3, a basic block."""
    convs = [i for i in (1, 2, 3) if f"{name}.conv{i}.weight" in tape]
    strided = 2 if len(convs) == 3 else 1
    y = x
    for i in convs:
        y = conv_norm(tape, f"{name}.conv{i}", f"{name}.bn{i}", y, training, stride if i == strided else 1)
        y = F.relu(y) if i != convs[-1] else y
    if f"{name}.downsample.0.weight" in tape:
        x = conv_norm(tape, f"{name}.downsample.0", f"{name}.downsample.1", x, training, stride)
    return tape.keep(name, F.relu(x + y))


def numbered(prefix: str) -> list[str]:
    """Names of the stem's convolution and norm and of the stages where children are numbered (2 ReLU, 3 pooling)."""
    return [f"{prefix}.{i}" for i in (0, 1, *range(4, 4 + STAGES))]


TORCHVISION = ["conv1", "bn1", *(f"layer{i + 1}" for i in range(STAGES))]


def encoder(tape: Tape, names: list[str], images: Tensor, *, training: bool = False, stem_stride: int = 2) -> Tensor:
    """[B, 3, H, W] -> [B, D], the pooled feature."""
    conv, norm, *stages = names
    x = F.max_pool2d(F.relu(conv_norm(tape, conv, norm, images, training, stem_stride)), 3, 2, 1)
    for number, stage in enumerate(stages):
        for i in range(tape.depth(stage)):
            x = residual(tape, f"{stage}.{i}", x, 2 if number and not i else 1, training)
    return x.mean((2, 3))


def mlp(tape: Tape, name: str, x: Tensor, *, training: bool = False) -> Tensor:
    """Linear, batch norm, ReLU, linear: projector and predictor. name: '' for a bare one."""
    dot = f"{name}." if name else ""
    x = F.relu(tape.batch_norm(f"{dot}bn1", tape.linear(f"{dot}l1", x), EPS, training))
    return tape.keep(name, tape.linear(f"{dot}l2", x))


def forward(tape: Tape, images: Tensor, *, training: bool = False, stem_stride: int = 2) -> dict[str, Tensor]:
    """images [B, 3, H, W] -> features [B, D], the online net's projection and prediction q, the target's projection."""
    modes = {"training": training}
    features, target = (encoder(tape, numbered(f"{net}_network.encoder"), images, stem_stride=stem_stride, **modes)
                        for net in ("online", "target"))
    projection = mlp(tape, "online_network.projetion", features, **modes)
    return {"features": features, "projection": projection, "q": mlp(tape, "predictor.predictor", projection, **modes),
            "target_z": mlp(tape, "target_network.projetion", target, **modes)}


def classify(tape: Tape, images: Tensor, *, stem_stride: int = 2) -> dict[str, Tensor]:
    """A torchvision ResNet: images [B, 3, H, W] -> features [B, D], logits where there is a head."""
    features = encoder(tape, TORCHVISION, images, stem_stride=stem_stride)
    return {"features": features} | ({"logits": tape.linear("fc", features)} if "fc.weight" in tape else {})
