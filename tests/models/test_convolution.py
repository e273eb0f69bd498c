"""Convolutions with a backward pass of their own, against Paddle's kernel and PyTorch in float64."""
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppssl import threads
from ppssl.models import convolution
from ppssl.models.convolution import Conv2D

RNG = np.random.default_rng(0)
CASES = [                                                 # batch, channels, height, width, outputs, kernel, stride, padding
    (2, 3, 11, 9, 5, 3, 1, 1), (3, 4, 8, 7, 6, 3, 2, 1), (1, 3, 20, 17, 4, 7, 2, 3), (2, 8, 5, 5, 3, 1, 1, 0), (2, 8, 7, 6, 3, 1, 2, 0),
    (2, 3, 4, 4, 2, 3, 1, 0), (1, 2, 2, 2, 2, 3, 2, 1), (5, 2, 3, 1, 2, 3, 1, 1), (2, 3, 9, 9, 2, 2, 3, 0), (3, 16, 40, 40, 16, 3, 1, 1),
    (2, 3, 4, 5, 2, 1, 1, 1), (2, 3, 5, 4, 2, 1, 2, 1),
]


def layer_and_input(case):
    batch, channels, height, width, outputs, kernel, stride, padding = case
    layer = Conv2D(channels, outputs, kernel, stride, padding)
    layer.weight.set_value(RNG.standard_normal(layer.weight.shape).astype(np.float32))
    return layer, paddle.to_tensor(RNG.standard_normal((batch, channels, height, width)).astype(np.float32), stop_gradient=False)


def weighting(shape) -> np.ndarray:
    return np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def by_torch(x, weight, stride: int, padding: int) -> list[np.ndarray]:
    """Output and gradients of a fixed weighting of it, in float64."""
    torch = pytest.importorskip("torch")
    x, weight = (torch.tensor(t.numpy().astype(np.float64), requires_grad=True) for t in (x, weight))
    y = torch.nn.functional.conv2d(x, weight, stride=stride, padding=padding)
    (y * torch.tensor(weighting(y.shape))).sum().backward()
    return [t.detach().numpy() for t in (y, x.grad, weight.grad)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_pytorchs(case, count, monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: count)
    monkeypatch.setattr(threads, "SMALL", 0)
    layer, x = layer_and_input(case)
    y = layer(x)
    assert "PyLayer" in y.grad_fn.name() or threads.library("libmklml_intel.so") is None
    y.backward(paddle.to_tensor(weighting(y.shape)))
    for found, expected in zip((y, x.grad, layer.weight.grad), by_torch(x, layer.weight, *layer.geometry), strict=True):
        assert tuple(found.shape) == expected.shape
        assert np.abs(found.numpy() - expected).max() <= 2e-6 * np.abs(expected).max()


def test_without_mkl_paddles_kernel_is_used(monkeypatch):
    layer, x = layer_and_input(CASES[0])
    own = layer(x).numpy()
    monkeypatch.setattr(convolution, "library", lambda name: None)
    theirs = layer(x)
    assert "PyLayer" not in theirs.grad_fn.name() and np.allclose(own, theirs.numpy(), atol=1e-5)


def test_other_types_use_paddles_kernel():
    layer, x = layer_and_input(CASES[0])
    layer.to(dtype="float64")
    assert np.allclose(layer(x.astype("float64")).numpy(), F.conv2d(x, layer.weight.astype("float32"), padding=1).numpy(), atol=1e-5)


def test_what_does_not_train_gets_no_gradient():
    layer, x = layer_and_input(CASES[0])
    x.stop_gradient = True
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is not None
    layer, x = layer_and_input(CASES[3])
    layer.weight.stop_gradient = True
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
