"""One rank's gradients and running statistics after each of three micro-batches: `micro_steps.py FOLDER`.

For tests/engine/test_communication.py.
"""
import contextlib
import sys
from pathlib import Path

import numpy as np
import ppssl  # noqa: F401 - prepares the process before Paddle is imported
import paddle
from paddle import nn

from ppssl import dist
from ppssl.models.batch_norm import BatchNorm
from ppssl.models.convvit import TokenConv


class Net(nn.Layer):
    """A weight that is transposed before use, and a batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = TokenConv(3, 5, (2,)), BatchNorm(5)

    def forward(self, x):
        """x [B, 4, 3] -> [B, 5]."""
        return self.norm(self.conv(x).squeeze(1))


def micro_steps(rows: np.ndarray) -> dict[str, np.ndarray]:
    """rows [3, B, 4, 3]: a step of two micro-batches, gradients shared after the second, then one of one. Arrays by name and
    micro-batch."""
    paddle.seed(0)
    net = Net()
    forward, found = dist.Replica(net), {}
    for i, x in enumerate(rows):
        if i == 2:
            for parameter in net.parameters():
                parameter.clear_gradient(set_to_zero=False)
        with forward.local_gradients() if i == 0 else contextlib.nullcontext():
            (forward(paddle.to_tensor(x)) ** 3).mean().backward()
        found |= {f"conv{i}": net.conv.weight.grad.numpy().copy(), f"norm{i}": net.norm.weight.grad.numpy().copy(),
                  f"mean{i}": net.norm.running_mean.numpy().copy()}
    return found


def draw() -> np.ndarray:
    """Three micro-batches of four rows, [3, 4, 4, 3]."""
    return np.random.default_rng(0).standard_normal((3, 4, 4, 3)).astype(np.float32)


if __name__ == "__main__":
    dist.start("cpu")
    paddle.set_flags({"FLAGS_use_stride_kernel": True})   # as on GPU: the gradient of a transposed weight is strided
    np.savez(Path(sys.argv[1]) / f"rank{dist.rank()}.npz", **micro_steps(draw()[:, dist.rank()::dist.world()]))
