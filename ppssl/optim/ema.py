"""Exponential moving averages of weights: BootMAE's teacher, BYOL's target, finetuning's --model_ema."""
import copy
from collections.abc import Sequence
from functools import partial

import paddle

from ppssl.arrays import has_own, vector
from ppssl.threads import in_parts, together


def follow(averages: Sequence, tensors: Sequence, decay: float) -> None:
    """average = decay * average + (1 - decay) * tensor, in place, pair by pair. Nothing is read from the device."""
    def move(pairs: list) -> None:
        for average, tensor in pairs:
            if has_own(average) and tensor.is_contiguous():
                from ppssl import cpu_kernels

                cpu_kernels.blend(vector(average), vector(tensor), decay, 1 - decay)
            else:
                average.scale_(decay)
                average.add_(tensor * (1 - decay))

    together([partial(move, pairs) for pairs in in_parts(list(zip(averages, tensors, strict=True)), lambda pair: pair[0])])


class WeightAverage:
    """A copy of a network that follows it: average = decay * average + (1 - decay) * online, after every step.

    `network` is in evaluation mode and takes no gradients. Integer buffers are copied.
    Source: timm 0.3.2 `utils/model_ema.py`.
    """

    def __init__(self, online):
        self.network = copy.deepcopy(online)
        self.network.eval()
        for p in self.network.parameters():
            p.stop_gradient, p.trainable = True, False
        own = self.network.state_dict()
        pairs = [(own[name], tensor) for name, tensor in online.state_dict().items()]
        self._floats = [pair for pair in pairs if paddle.is_floating_point(pair[0])]
        self._counters = [pair for pair in pairs if not paddle.is_floating_point(pair[0])]

    @paddle.no_grad()
    def update(self, decay: float) -> None:
        """One step towards the online network, over all tensors, those that do not train included."""
        follow(*zip(*self._floats), decay)
        for average, tensor in self._counters:
            paddle.assign(tensor, average)
