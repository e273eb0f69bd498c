"""Linear probing: a batch norm and a linear layer on the frozen encoder's features."""
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppssl.config import Config, option
from ppssl.data.transforms import ProbeTransform
from ppssl.engine.features import knn_accuracy
from ppssl.methods.classify import Classification, ClassifyOptions, init_linear
from ppssl.models import registry
from ppssl.models.batch_norm import BatchNorm
from ppssl.optim.groups import Group, trainable
from ppssl.optim.lars import LARS
from ppssl.optim.schedules import Clock


@dataclass(frozen=True)
class Options(ClassifyOptions):
    """Keys of linear probing."""
    global_pool: bool = option(False, "probe the mean patch token instead of the cls token", negative="cls_token")
    knn: bool = option(False, "also report the accuracy of a k-nearest-neighbour classifier on the frozen features")


class LinearProbe(Classification):
    """LARS on the head alone. Source: facebookresearch/mae `main_linprobe.py`."""

    name, title, task, Options = "linprobe", "Linear probing", "linprobe", Options
    defaults = {"batch_size": 512, "epochs": 90, "weight_decay": 0.0, "blr": 0.1, "warmup_epochs": 10}
    head_std = 0.01

    def __init__(self, config: Config, model=None, world: int = 1):
        super().__init__(config, model, world)
        self.transform = ProbeTransform(config.data.input_size)

    def build_model(self):
        return registry.create("classifier", self.config.model, img_size=self.config.data.input_size, num_classes=self.num_classes,
                               global_pool=self.options.global_pool)

    def prepare(self) -> None:
        """Load the encoder; head := batch norm without scale and shift, then a new linear layer; the rest is frozen."""
        super().prepare()
        init_linear(self.model.head, self.head_std)
        attach_probe_head(self.model)

    @property
    def network(self):
        return self.model.head

    def before_training(self, extract) -> dict[str, float]:
        """The k-NN accuracy, where asked for."""
        if not self.options.knn:
            return {}
        return {"knn_acc1": knn_accuracy(*extract("train"), *extract("val"))}

    def train_mode(self) -> None:
        """The frozen trunk stays in evaluation mode."""
        self.model.eval()
        self.model.head.train()

    def sample(self, image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": self.transform(image, rng), "label": np.int64(label)}

    def loss(self, forward, batch: dict, clock: Clock):
        with paddle.no_grad():
            features = self.model.forward_features(self.images(batch))
        loss = F.cross_entropy(forward(features).astype("float32"), batch["label"])
        return loss, {"loss": loss}

    def build_optimizer(self) -> LARS:
        return LARS([Group(tuple(trainable(self.model)), weight_decay=self.config.train.weight_decay)])


def attach_probe_head(model) -> None:
    """Freeze the model and put Sequential(BatchNorm(affine=False, eps=1e-6), its own linear head) in the head's place."""
    for p in model.parameters():
        p.stop_gradient, p.trainable = True, False
    linear = model.head
    for p in linear.parameters():
        p.stop_gradient, p.trainable = False, True
    model.head = nn.Sequential(BatchNorm(linear.weight.shape[0], eps=1e-6, affine=False), linear)
