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


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_relu_and_a_shortcut_it_equals_the_three_one_after_another(shape, shortcut):
    torch = pytest.importorskip("torch")
    given, other = example(shape), example(shape, seed=1)["x"]
    theirs = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(shape[1])
    x, add = torch.tensor(given["x"], requires_grad=True), torch.tensor(other, requires_grad=True)
    y = torch.relu(theirs(x) + add) if shortcut else torch.relu(theirs(x))
    (y * torch.tensor(given["cotangent"])).sum().backward()
    layer, own, own_add = BatchNorm(shape[1]), paddle.to_tensor(given["x"], stop_gradient=False), paddle.to_tensor(other, stop_gradient=False)
    found = layer.then_relu(own, own_add if shortcut else None)
    (found * paddle.to_tensor(given["cotangent"])).sum().backward()
    expected = {"y": y, "dx": x.grad, "dweight": theirs.weight.grad, "dbias": theirs.bias.grad, "var": theirs.running_var}
    ours_ = {"y": found, "dx": own.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad, "var": layer.running_var}
    if shortcut:
        expected["dadd"], ours_["dadd"] = add.grad, own_add.grad
    assert_close({k: v.numpy() for k, v in ours_.items()}, {k: v.detach().numpy() for k, v in expected.items()})
    layer.eval()
    theirs.eval()
    y = torch.relu(theirs(x) + add) if shortcut else torch.relu(theirs(x))
    assert np.abs(layer.then_relu(own, own_add if shortcut else None).numpy() - y.detach().numpy()).max() < 1e-5


def test_what_is_no_number_goes_through_a_relu_in_both_directions():
    layer, x = BatchNorm(2), example((4, 2))["x"]
    x[0, 1] = np.nan
    tensor = paddle.to_tensor(x, stop_gradient=False)
    y = layer.then_relu(tensor)
    y.sum().backward()
    for found in (y, tensor.grad):
        assert np.isfinite(found.numpy()[:, 0]).all() and np.isnan(found.numpy()[:, 1]).all()


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_statistics_of_numbers_far_from_zero_lose_nothing(shift):
    x = (np.random.default_rng(0).standard_normal((8, 3, 40, 40)) + shift).astype(np.float32)
    layer = BatchNorm(3, momentum=1.0)
    layer(paddle.to_tensor(x))
    exact = x.astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)
    assert np.allclose(layer.running_mean.numpy(), exact.mean(1), rtol=1e-6, atol=1e-6)
    assert np.allclose(layer.running_var.numpy(), exact.var(1, ddof=1), rtol=2e-5)


def test_a_pass_without_a_backward_pass_leaves_no_memory_behind():
    def allocated() -> int:
        return paddle.base.core.host_memory_stat_current_value("Allocated", 0)

    layer, x = BatchNorm(8), paddle.to_tensor(example((4, 8, 64, 64))["x"], stop_gradient=False)
    layer.then_relu(x, x)
    before = allocated()
    for _ in range(5):
        layer.then_relu(x, x)
    assert allocated() - before < x.size                  # bytes: a quarter of one output
