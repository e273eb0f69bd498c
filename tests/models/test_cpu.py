"""The layers' own CPU loops against PyTorch in float64, at ordinary and extreme numbers."""
import gc
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppssl import arrays, cpu_kernels
from ppssl.models import cpu
from ppssl.models.batch_norm import BatchNorm
from ppssl.models.convolution import Conv2D

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)


def gradients(function, arrays: dict, framework) -> dict[str, np.ndarray]:
    """Output of function(*tensors) and the gradients of a fixed weighting of it, as float64."""
    if framework is paddle:
        tensors = [paddle.to_tensor(a, stop_gradient=False) for a in arrays.values()]
    else:
        tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays.values()]
    out = function(*tensors)
    weight = np.cos(np.arange(int(np.prod(out.shape)), dtype=np.float32)).reshape(tuple(out.shape))
    (out * (paddle.to_tensor(weight) if framework is paddle else torch.tensor(weight))).sum().backward()
    found = {"y": out, **{f"d{name}": t.grad for name, t in zip(arrays, tensors)}}
    return {k: (v.numpy() if framework is paddle else v.detach().numpy()).astype(np.float64) for k, v in found.items()}


def normal(*shape, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return (shift + scale * RNG.standard_normal(shape)).astype(np.float32)


def attention(query, key, value):
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return (torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v).transpose(1, 2).flatten(2)


CASES = {
    "gelu": (cpu.gelu, torch.nn.functional.gelu, {"x": normal(3, 5, 40, scale=4)}),
    "gelu far out": (cpu.gelu, torch.nn.functional.gelu, {"x": np.linspace(-40, 40, 999, dtype=np.float32)}),
    "layer norm": (lambda x, w, b: cpu._LayerNorm.apply(x, w, b, 1e-6), lambda x, w, b: torch.nn.functional.layer_norm(x, x.shape[-1:], w, b, 1e-6),
                   {"x": normal(7, 9, 33, scale=3, shift=5), "w": normal(33), "b": normal(33)}),
    "linear": (cpu.linear, lambda x, w, b: x @ w + b, {"x": normal(2, 6, 17), "w": normal(17, 5), "b": normal(5)}),
    "attention": (cpu.attend, attention, {"q": normal(2, 7, 3, 10), "k": normal(2, 11, 3, 10), "v": normal(2, 11, 3, 10)}),
    "attention, sharp": (cpu.attend, attention, {"q": normal(1, 5, 2, 8, scale=40), "k": normal(1, 5, 2, 8, scale=40), "v": normal(1, 5, 2, 8)}),
    "one row, one column": (cpu.attend, attention, {"q": normal(1, 1, 1, 1), "k": normal(1, 1, 1, 1), "v": normal(1, 1, 1, 1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_pytorchs_in_float64(name):
    ours, theirs, arrays = CASES[name]
    found, expected = gradients(ours, arrays, paddle), gradients(theirs, arrays, torch)
    for key in expected:
        assert np.abs(found[key] - expected[key]).max() <= 3e-6 * max(1.0, np.abs(expected[key]).max()), key


def test_nothing_finite_comes_of_what_is_not():
    x = paddle.to_tensor([[1.0, float("nan"), 2.0], [1.0, 2.0, float("inf")], [3.0, 4.0, 5.0]])
    assert np.array_equal(np.isnan(cpu.gelu(x).numpy()), np.isnan(F.gelu(x).numpy()))
    soft = x.clone()
    cpu_kernels.softmax(arrays.rows(soft), 1.0)
    assert np.array_equal(np.isnan(soft.numpy()), np.isnan(F.softmax(x).numpy()))
    layer = cpu.LayerNorm(3)
    assert np.isnan(layer(x).numpy()).any(1).tolist() == [True, True, False]


def test_frozen_weights_get_no_gradient_and_pass_it_on():
    for layer, x in ((cpu.Linear(4, 3), normal(2, 4)), (cpu.LayerNorm(4), normal(2, 4))):
        for p in layer.parameters():
            p.stop_gradient = True
        given, x = x, paddle.to_tensor(x, stop_gradient=False)
        layer(x).sum().backward()
        assert x.grad is not None and all(p.grad is None for p in layer.parameters())
        layer.bias.stop_gradient = False
        layer(paddle.to_tensor(given)).sum().backward()
        assert layer.bias.grad is not None and layer.weight.grad is None


def test_attention_on_what_does_not_train():
    query, memory = paddle.to_tensor(normal(1, 3, 2, 8), stop_gradient=False), paddle.to_tensor(normal(1, 4, 2, 8))
    cpu.attend(query, memory, memory).sum().backward()
    assert query.grad is not None and memory.grad is None


def test_views_that_are_not_contiguous_are_read_as_they_are():
    strided = paddle.get_flags("FLAGS_use_stride_kernel")
    paddle.set_flags({"FLAGS_use_stride_kernel": True})
    try:
        x = paddle.to_tensor(normal(6, 8))
        assert not x.t().is_contiguous()
        assert np.array_equal(cpu.gelu(x.t()).numpy(), cpu.gelu(x).numpy().T)
        layer = cpu.LayerNorm(6)
        assert np.array_equal(layer(x.t()).numpy(), layer(x.t().contiguous()).numpy())
    finally:
        paddle.set_flags(strided)


def test_an_array_keeps_the_memory_of_its_tensor():
    array = arrays.vector(paddle.full([1000], 3.0) * 2)
    gc.collect()
    others = [paddle.full([1000], float(i)) for i in range(20)]
    assert (array == 6).all() and len(others) == 20


def test_other_types_and_traced_programs_use_paddles_kernels():
    assert not arrays.has_own(paddle.ones([2], "float64")) and arrays.has_own(paddle.ones([2]))
    x = paddle.to_tensor(normal(3, 4).astype(np.float64))
    assert np.allclose(cpu.gelu(x).numpy(), F.gelu(x).numpy(), atol=1e-12)


def test_the_loops_can_be_loaded_in_a_process_that_has_nothing_but_paddle():
    code = "import ppssl, paddle; from ppssl.models.cpu import gelu; print(gelu(paddle.zeros([1])).item())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert said.stdout == "0.0\n", said.stderr


@pytest.mark.parametrize("layer, shape", [(cpu.LayerNorm(4), (2, 3)), (BatchNorm(4), (2, 3)), (BatchNorm(4), (2, 5, 3, 3)), (Conv2D(4, 2, 3), (2, 3, 5, 5)),
                                          (Conv2D(4, 2, 1), (2, 2, 4, 4)), (Conv2D(4, 2, 3), (4, 5, 5))])
def test_an_input_of_another_width_is_an_error_and_not_read_beyond_its_end(layer, shape):
    with pytest.raises(ValueError):
        layer(paddle.ones(shape))
