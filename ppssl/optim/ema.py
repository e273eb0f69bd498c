"""Exponential moving averages of weights: BootMAE's teacher, BYOL's target, finetuning's --model_ema."""
import copy

import paddle


class WeightAverage:
    """A copy of a network that follows it: average = decay * average + (1 - decay) * online, after every step.

    `network` is in evaluation mode and takes no gradients. Integer buffers are copied. Source: timm 0.3.2 `utils/model_ema.py`.
    """

    def __init__(self, online):
        self.network = copy.deepcopy(online)
        self.network.eval()
        for p in self.network.parameters():
            p.stop_gradient, p.trainable = True, False
        own = self.network.state_dict()
        self._pairs = [(own[name], tensor) for name, tensor in online.state_dict().items()]

    @paddle.no_grad()
    def update(self, decay: float) -> None:
        """One step towards the online network. Nothing is read from the device."""
        for average, tensor in self._pairs:
            if paddle.is_floating_point(average):
                average.lerp_(tensor, 1.0 - decay)
            else:
                paddle.assign(tensor, average)
