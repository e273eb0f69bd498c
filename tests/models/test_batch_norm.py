"""Batch normalisation against PyTorch's, on one rank and on two."""
import numpy as np
import paddle
import pytest

from ppssl.models.batch_norm import BatchNorm
from tests.launching import launch

SHAPES = [(6, 5), (4, 3, 5, 2)]


def example(shape, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draws = {"x": 3 + 2 * rng.standard_normal(shape), "cotangent": rng.standard_normal(shape),
             "weight": rng.uniform(0.5, 2, shape[1]), "bias": rng.standard_normal(shape[1])}
    return {k: v.astype(np.float32) for k, v in draws.items()}


def by_torch(given: dict, steps: int = 1) -> dict[str, np.ndarray]:
    """Output, gradients and buffers of torch.nn.BatchNorm after some training passes, and its output in evaluation."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(given["x"], requires_grad=True)
    layer = (torch.nn.BatchNorm1d if x.ndim == 2 else torch.nn.BatchNorm2d)(x.shape[1])
    layer.load_state_dict({"weight": torch.tensor(given["weight"]), "bias": torch.tensor(given["bias"])}, strict=False)
    for _ in range(steps):
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        (y * torch.tensor(given["cotangent"])).sum().backward()
    found = {"y": y, "dx": x.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad, "running_mean": layer.running_mean,
             "running_var": layer.running_var, "count": layer.num_batches_tracked, "evaluated": layer.eval()(x)}
    return {k: v.detach().numpy().copy() for k, v in found.items()}


def ours(given: dict, steps: int = 1) -> dict[str, np.ndarray]:
    layer = BatchNorm(given["x"].shape[1])
    layer.weight.set_value(given["weight"])
    layer.bias.set_value(given["bias"])
    x = paddle.to_tensor(given["x"], stop_gradient=False)
    for _ in range(steps):
        for tensor in (*layer.parameters(), x):
            tensor.clear_gradient(set_to_zero=False)
        y = layer(x)
        (y * paddle.to_tensor(given["cotangent"])).sum().backward()
    found = {"y": y, "dx": x.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad, "running_mean": layer.running_mean,
             "running_var": layer.running_var, "count": layer.num_batches_tracked}
    layer.eval()
    return {k: v.numpy() for k, v in (found | {"evaluated": layer(x)}).items()}


def assert_close(found: dict, expected: dict, bar: float = 2e-6) -> None:
    for name in found:
        scale = np.abs(expected[name]).max()
        assert np.abs(found[name] - expected[name]).max() <= bar * scale, name


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_pytorchs_in_outputs_gradients_and_running_statistics(shape):
    given = example(shape)
    found = ours(given, steps=3)
    assert_close(found, by_torch(given, steps=3))
    assert found["count"] == 3 and found["count"].dtype == np.int64


def test_two_ranks_with_half_the_batch_equal_one_with_the_whole(tmp_path):
    for i, shape in enumerate(SHAPES):
        np.savez(tmp_path / f"in{i}.npz", **example(shape))
    code, said = launch(tmp_path / "log", "tests/models/scripts/batch_norm_of_ranks.py", str(tmp_path))
    assert code == 0, said
    for i, shape in enumerate(SHAPES):
        ranks = [dict(np.load(tmp_path / f"rank{rank}-in{i}.npz")) for rank in (0, 1)]
        found = {k: np.concatenate([r[k] for r in ranks]) if k in ("y", "dx") else ranks[0][k] for k in ranks[0]}
        for k in found.keys() - {"y", "dx"}:
            assert np.array_equal(ranks[0][k], ranks[1][k]), f"the ranks differ in {k}"
        assert_close(found, by_torch(example(shape)))
        assert_close(found, ours(example(shape)))


def test_without_scale_and_shift_it_only_normalises():
    layer = BatchNorm(3, eps=1e-6, affine=False)
    y = layer(paddle.to_tensor(example((8, 3))["x"])).numpy()
    assert list(layer.state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]
    assert np.abs(y.mean(0)).max() < 1e-6 and np.abs(y.std(0) - 1).max() < 1e-5


def test_a_channel_that_is_not_finite_leaves_its_running_statistics_alone():
    layer, x = BatchNorm(2), example((4, 2))["x"]
    x[0, 1] = np.inf
    layer(paddle.to_tensor(x))
    mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
    assert mean[0] == pytest.approx(0.1 * x[:, 0].mean(), rel=1e-5) and (mean[1], var[1]) == (0, 1)


def test_evaluation_leaves_the_buffers_alone():
    layer = BatchNorm(3)
    before = {k: v.numpy() for k, v in layer.state_dict().items()}
    layer.eval()
    layer(paddle.to_tensor(example((8, 3))["x"]))
    assert all(np.array_equal(before[k], v.numpy()) for k, v in layer.state_dict().items())
