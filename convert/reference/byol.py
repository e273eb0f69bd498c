"""BYOL (blankWorld/BYOL-PyTorch): ResNet encoder with Sequential numbering, projector and predictor."""
import torch.nn.functional as F
from torch import Tensor

from convert.reference.tape import Tape

EPS = 1e-5
STAGES = range(4, 8)                                      # 0 convolution, 1 norm, 2 ReLU, 3 pooling, then the stages


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


def encoder(tape: Tape, name: str, images: Tensor, *, training: bool = False, stem_stride: int = 2,
            pool: bool = True) -> Tensor:
    """[B, 3, H, W] -> [B, D], the pooled feature."""
    x = F.relu(conv_norm(tape, f"{name}.0", f"{name}.1", images, training, stem_stride))
    x = F.max_pool2d(x, 3, 2, 1) if pool else x
    for stage in STAGES:
        for i in range(tape.depth(f"{name}.{stage}")):
            x = residual(tape, f"{name}.{stage}.{i}", x, 2 if stage > STAGES[0] and i == 0 else 1, training)
    return tape.keep(name, x.mean((2, 3)))


def mlp(tape: Tape, name: str, x: Tensor, *, training: bool = False) -> Tensor:
    """Linear, batch norm, ReLU, linear: projector and predictor. name: '' for a bare one."""
    dot = f"{name}." if name else ""
    x = F.relu(tape.batch_norm(f"{dot}bn1", tape.linear(f"{dot}l1", x), EPS, training))
    return tape.keep(name, tape.linear(f"{dot}l2", x))


def forward(tape: Tape, images: Tensor, *, training: bool = False, stem_stride: int = 2, pool: bool = True
            ) -> dict[str, Tensor]:
    """images [B, 3, H, W] -> features [B, D], the online net's prediction q and the target net's projection z."""
    options = {"training": training}
    features = encoder(tape, "online_network.encoder", images, stem_stride=stem_stride, pool=pool, **options)
    q = mlp(tape, "predictor.predictor", mlp(tape, "online_network.projetion", features, **options), **options)
    target = encoder(tape, "target_network.encoder", images, stem_stride=stem_stride, pool=pool, **options)
    return {"features": features, "q": q, "target_z": mlp(tape, "target_network.projetion", target, **options)}
