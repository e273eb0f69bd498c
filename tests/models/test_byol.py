"""ResNets and BYOL's networks, where the golden cases do not look."""
import math

import numpy as np
import paddle
import pytest
from paddle import LazyGuard

from ppssl.models import registry
from ppssl.models.byol import MLP, byol_loss
from ppssl.models.resnet import encoder_name, encoder_of, torchvision_name

PARAMETERS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160}


def lazy(task: str, name: str, **kwargs):
    with LazyGuard():
        return registry.create(task, name, **kwargs)


def tiny(seed: int = 0):
    paddle.seed(seed)
    return registry.create("pretrain", "byol_resnet_tiny")


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_resnet_has_torchvisions_number_of_parameters(name):
    assert sum(p.size for p in lazy("classifier", name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [e.name for e in registry.entries("classifier") if e.family == "byol"])
def test_encoder_keys_and_torchvisions_map_onto_each_other(name):
    model = lazy("classifier", name)
    numbered = list(encoder_of(model).state_dict())
    named = [k for k in model.state_dict() if not k.startswith("fc.")]
    assert [torchvision_name(k) for k in numbered] == named and [encoder_name(k) for k in named] == numbered
    with pytest.raises(ValueError, match="fc.weight"):
        encoder_name("fc.weight")


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 16)])
def test_features_are_pooled_whatever_the_image_size(size):
    model = tiny()
    model.eval()
    assert list(model.features(paddle.randn([2, 3, *size])).shape) == [2, 128]


def test_convolutions_start_with_the_variance_of_their_outputs_and_norms_as_identity():
    state = registry.create("classifier", "resnet18").state_dict()
    conv = state["layer3.0.conv2.weight"].numpy()
    assert conv.std() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01) and abs(conv.mean()) < 1e-4
    assert (state["layer3.0.bn2.weight"].numpy() == 1).all() and (state["layer3.0.bn2.bias"].numpy() == 0).all()


def test_linear_layers_start_uniform_within_their_fan_in():
    state = {k: v.numpy() for k, v in MLP(400, 900, 50).state_dict().items()}
    for name, bound in (("l1.weight", 1 / 20), ("l1.bias", 1 / 20), ("l2.weight", 1 / 30), ("l2.bias", 1 / 30)):
        assert 0.9 * bound < np.abs(state[name]).max() <= bound, name
        assert state[name].std() == pytest.approx(bound / math.sqrt(3), rel=0.2), name


def test_the_target_follows_in_its_parameters_alone_and_takes_no_gradients():
    model = tiny()
    model.align_target()
    model.train()
    (model(paddle.randn([4, 3, 32, 32])) ** 2).mean().backward()
    online, target = (dict(n.state_dict()) for n in (model.online_network, model.target_network))
    assert all(p.grad is not None for p in model.parameters() if p.trainable)
    assert not any(p.trainable or p.grad is not None for p in model.target_network.parameters())
    assert all(np.array_equal(online[k].numpy(), target[k].numpy()) for k, _ in model.online_network.named_parameters())
    assert not np.array_equal(online["encoder.1.running_mean"].numpy(), target["encoder.1.running_mean"].numpy())
    name = "projetion.l1.weight"
    before, moved = target[name].numpy().copy(), online[name].numpy() + 1
    online[name].set_value(moved)
    model.update_target(0.75)
    assert np.allclose(target[name].numpy(), 0.75 * before + 0.25 * moved, atol=1e-7)


def test_networks_start_apart_until_they_are_aligned():
    model = tiny()
    first = [n.encoder[0].weight.numpy() for n in (model.online_network, model.target_network)]
    assert not np.array_equal(*first)


def test_the_loss_is_zero_for_aligned_rows_four_for_opposite_ones_and_a_zero_target_counts_as_orthogonal():
    q = paddle.to_tensor([[3.0, 4.0], [1.0, 0.0]], stop_gradient=False)
    assert byol_loss(q, 2 * q).item() == pytest.approx(0, abs=1e-6)
    assert byol_loss(q, -q).item() == pytest.approx(4, abs=1e-6)
    loss = byol_loss(q, paddle.to_tensor([[3.0, 4.0], [0.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-6) and (q.grad.numpy()[1] == 0).all()
