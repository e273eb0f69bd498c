"""SGD and both versions of LARS against plain loops."""
import numpy as np
import paddle
import pytest

from ppssl.optim.groups import Group
from ppssl.optim.lars import LARS, LarsSGD, byol_groups
from ppssl.optim.sgd import SGD

SHAPES = {"encoder.0.weight": (4, 3, 2, 2), "encoder.1.weight": (4,), "encoder.1.bias": (4,), "encoder.4.0.bn1.weight": (4,),
          "encoder.4.0.downsample.1.weight": (4,), "projetion.l1.weight": (3, 5)}


def parameters(seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [(name, paddle.create_parameter(shape, "float32", default_initializer=paddle.nn.initializer.Assign(
        rng.standard_normal(shape).astype(np.float32)))) for name, shape in SHAPES.items()]


def give_gradients(params: list, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _, p in params:
        (p * paddle.to_tensor(rng.standard_normal(p.shape).astype(np.float32))).sum().backward()


def run(optimizer, params: list, steps: range, lr: float = 0.1) -> dict[str, np.ndarray]:
    for i in steps:
        optimizer.clear_grad()
        give_gradients(params, seed=i)
        optimizer.step(lr * (i + 1))
    return {name: p.numpy().copy() for name, p in params}


def byol(params: list, **kwargs) -> LarsSGD:
    groups, excluded = byol_groups(params, 1e-2, exclude=True)
    return LarsSGD(groups, excluded=excluded, **kwargs)


@pytest.mark.parametrize("kwargs", [{}, {"nesterov": True}, {"dampening": 0.3}, {"momentum": 0.0}])
def test_sgd_equals_pytorchs(kwargs):
    torch = pytest.importorskip("torch")
    ours = parameters()
    theirs = {name: torch.tensor(p.numpy(), requires_grad=True) for name, p in ours}
    reference = torch.optim.SGD(theirs.values(), lr=0.1, weight_decay=0.05, **({"momentum": 0.9} | kwargs))
    optimizer = SGD([Group(tuple(ours), weight_decay=0.05)], **kwargs)
    for i in range(4):
        optimizer.clear_grad()
        give_gradients(ours, seed=i)
        for name, p in ours:
            theirs[name].grad = torch.tensor(p.grad.numpy())
        reference.param_groups[0]["lr"] = 0.1 * (i + 1)
        reference.step()
        optimizer.step(0.1 * (i + 1))
    for name, p in ours:
        assert np.abs(p.numpy() - theirs[name].detach().numpy()).max() < 1e-6, name


def test_a_groups_scale_and_a_scheduled_decay_reach_the_step():
    whole, scaled = parameters(), parameters()
    a = run(SGD([Group(tuple(whole), weight_decay=0.0)]), whole, range(3), lr=0.05)
    optimizer = SGD([Group(tuple(scaled), lr_scale=0.5, weight_decay=0.3)])
    for i in range(3):
        optimizer.clear_grad()
        give_gradients(scaled, seed=i)
        optimizer.step(0.1 * (i + 1), weight_decay=0.0)
    assert all(np.allclose(a[name], p.numpy(), atol=1e-7) for name, p in scaled)


def test_the_stems_norm_is_adapted_and_decayed_as_in_the_official_code_and_all_other_norms_are_not():
    groups, excluded = byol_groups(parameters(), 1e-2, exclude=True)
    assert excluded == {"encoder.1.bias", "encoder.4.0.bn1.weight", "encoder.4.0.downsample.1.weight"}
    assert [g.weight_decay for g in groups] == [1e-2, 1e-2, 0, 0, 0, 1e-2] and all(len(g.params) == 1 for g in groups)
    assert byol_groups(parameters(), 1e-2, exclude=False)[1] == frozenset()


def test_a_tensor_without_norm_or_gradient_does_not_move_and_poisons_nothing():
    params = parameters()
    weight = params[0][1]
    weight.set_value(np.zeros(weight.shape, np.float32))
    optimizer = byol(params)
    moved = run(optimizer, params, range(2))
    assert (moved["encoder.0.weight"] == 0).all()
    optimizer.clear_grad()
    for _, p in params:
        (p * 0).sum().backward()
    optimizer.step(0.1)
    assert all(np.isfinite(p.numpy()).all() for _, p in params)


def test_a_parameter_without_a_gradient_is_left_out():
    params = parameters()
    optimizer = byol(params)
    before = params[1][1].numpy().copy()
    give_gradients(params[:1], seed=0)
    optimizer.step(0.1)
    assert np.array_equal(params[1][1].numpy(), before) and list(optimizer.state()) == ["momentum.encoder.0.weight"]


@pytest.mark.parametrize("build", [byol, lambda params: LARS([Group(tuple(params), weight_decay=1e-2)])])
def test_a_stored_state_continues_bit_for_bit(build):
    whole, first = parameters(), parameters()
    expected = run(build(whole), whole, range(4))
    before = build(first)
    run(before, first, range(2))
    again = parameters(seed=1)
    for (_, p), (_, q) in zip(again, first):
        p.set_value(q)
    after = build(again)
    after.load({k: v.numpy() for k, v in before.state().items()}, before.steps)
    found = run(after, again, range(2, 4))
    assert after.steps == 4 and all(np.array_equal(found[k], expected[k]) for k in expected)


def test_a_state_of_other_parameters_is_refused():
    with pytest.raises(ValueError, match="other.weight has no partner"):
        byol(parameters()).load({"momentum.other.weight": np.zeros(3, np.float32)}, 1)


def test_nesterov_with_dampening_is_refused():
    with pytest.raises(ValueError, match="nesterov"):
        byol(parameters(), nesterov=True, dampening=0.1)
