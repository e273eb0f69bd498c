"""One rank's part of batch norms over all ranks: `batch_norm_of_ranks.py FOLDER`, for every in*.npz (tests/models/test_batch_norm.py)."""
import sys
from pathlib import Path

import numpy as np
import ppssl  # noqa: F401 - prepares the process before Paddle is imported
import paddle

from ppssl import dist
from ppssl.models.batch_norm import BatchNorm


def own_part(whole: dict) -> dict[str, np.ndarray]:
    """Outputs, gradients and buffers of a layer that sees this rank's rows."""
    rows = slice(dist.rank() * len(whole["x"]) // dist.world(), (dist.rank() + 1) * len(whole["x"]) // dist.world())
    layer = BatchNorm(whole["x"].shape[1])
    layer.weight.set_value(whole["weight"])
    layer.bias.set_value(whole["bias"])
    x = paddle.to_tensor(whole["x"][rows], stop_gradient=False)
    replica = dist.Replica(layer)                         # lives until the backward pass is done
    y = replica(x)
    ((y * paddle.to_tensor(whole["cotangent"][rows])).sum() * dist.world()).backward()             # gradients are averaged
    found = {"y": y, "dx": x.grad / dist.world(), "dweight": layer.weight.grad, "dbias": layer.bias.grad,
             "running_mean": layer.running_mean, "running_var": layer.running_var, "count": layer.num_batches_tracked}
    return {k: v.numpy() for k, v in found.items()}


dist.start("cpu")
for path in sorted(Path(sys.argv[1]).glob("in*.npz")):
    np.savez(path.with_name(f"rank{dist.rank()}-{path.name}"), **own_part(dict(np.load(path))))
