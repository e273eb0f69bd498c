"""Moving averages of weights."""
import numpy as np
import paddle
from paddle import nn

from ppssl.models.batch_norm import BatchNorm
from ppssl.optim.ema import WeightAverage


def network() -> nn.Layer:
    paddle.seed(0)
    return nn.Sequential(nn.Linear(3, 4), BatchNorm(4))


def test_the_average_follows_every_float_and_copies_counters():
    online = network()
    average = WeightAverage(online)
    before = {k: v.numpy() for k, v in average.network.state_dict().items()}
    for t in online.state_dict().values():
        t.set_value(t + 1)
    average.update(0.75)
    for name, value in average.network.state_dict().items():
        share = 1.0 if "tracked" in name else 0.25
        assert np.allclose(value.numpy(), before[name] + share, atol=1e-6), name


def test_updating_the_average_leaves_the_online_network_alone():
    online = network()
    average, before = WeightAverage(online), {k: v.numpy() for k, v in online.state_dict().items()}
    average.network[0].weight.set_value(paddle.zeros([3, 4]))
    average.update(0.5)
    assert all(np.array_equal(v.numpy(), before[k]) for k, v in online.state_dict().items())
    assert np.allclose(average.network[0].weight.numpy(), before["0.weight"] / 2)


def test_the_average_is_in_evaluation_mode_and_takes_no_gradients():
    online = network()
    online.train()
    average = WeightAverage(online).network
    assert not average.training and online.training
    assert not any(p.trainable for p in average.parameters()) and all(p.trainable for p in online[0].parameters())
    online(average(paddle.ones([2, 3])) @ paddle.ones([4, 3])).sum().backward()
    assert average[0].weight.grad is None and online[0].weight.grad is not None
