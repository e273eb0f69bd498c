"""What a training method is to the loop: everything particular to it sits behind these few members."""
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import paddle

from ppssl.config import Config
from ppssl.data.device import normalize
from ppssl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ppssl.errors import BadRequest
from ppssl.optim.adamw import AdamW
from ppssl.optim.schedules import Clock, scale_lr, warmup_cosine


@dataclass(frozen=True)
class NoOptions:
    """The section of a method without keys of its own."""


class Method:
    """One way of training. Subclasses say what differs from MAE's pretraining recipe.

    A batch is a dict of tensors: the stacked arrays of `sample`. Images are uint8 [B, H, W, 3] (normalised on the device) or
    float32 [B, 3, H, W] (taken as they are).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    task: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    Options: ClassVar[type] = NoOptions
    defaults: ClassVar[dict[str, Any]] = {}
    accepted: ClassVar[dict[str, tuple[bool, str]]] = {}   # official flags without effect here, as config.ACCEPTED
    mean, std = IMAGENET_MEAN, IMAGENET_STD               # of the images, in 0..1

    def __init__(self, config: Config, model=None, world: int = 1):
        """model: trained instead of the one that the config names (tests and golden cases)."""
        self.config, self.options = config, config.options
        train = config.train
        self.peak_lr = train.lr if train.lr is not None else scale_lr(train.blr, train.batch_size, train.accum_iter, world)
        self.model = self.build_model() if model is None else model

    def build_model(self):
        """The network that is trained and saved."""
        raise NotImplementedError

    def sample(self, image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One sample from a decoded image [H, W, 3] uint8: its arrays, all random numbers drawn from `rng`."""
        raise NotImplementedError

    def build_optimizer(self):
        """An optimizer over the trainable parameters."""
        raise NotImplementedError

    def rates(self, clock: Clock) -> tuple[float, float | None]:
        """(learning rate, weight decay or None for the groups' own) of the step that starts at `clock`."""
        train = self.config.train
        return warmup_cosine(clock.fractional_epoch, self.peak_lr, train.min_lr, train.warmup_epochs, train.epochs), None

    def loss(self, forward, batch: dict, clock: Clock):
        """(loss [], {name: scalar to log}) of one micro-batch; `forward` is the model as this rank runs it."""
        raise NotImplementedError

    @property
    def network(self):
        """The part of the model whose forward pass takes gradients: what every rank replicates."""
        return self.model

    def train_mode(self) -> None:
        """Put the networks into the mode they train in; called at the start of every epoch."""
        self.model.train()

    def after_step(self, clock: Clock) -> None:
        """What follows an optimizer step that was taken, for instance a teacher's update."""

    def before_training(self, extract) -> dict[str, float]:
        """Figures of the untrained state worth reporting; extract(split) -> (features [N, D], labels [N])."""
        return {}

    def evaluated(self) -> dict[str, Any]:
        """The classifiers to evaluate after every epoch, by the prefix of their results' names; none while pretraining."""
        return {}

    def layers(self) -> dict[str, Any]:
        """The networks whose tensors a checkpoint holds, by section name."""
        return {"model": self.model}

    def denormalize(self, images):
        """Normalised images [B, 3, H, W] back to 0..1."""
        mean, std = (paddle.to_tensor(v).reshape([1, 3, 1, 1]) for v in (self.mean, self.std))
        return images * std + mean

    def reconstruct(self, batch: dict):
        """(pixels [B, 3, H, W] as the loss compares them, mask [B, N] with 1 removed, whether patches are normalised).

        Raises BadRequest where the method predicts no pixels.
        """
        raise BadRequest(f"{self.title} predicts no pixels: there is no reconstruction to show")

    @classmethod
    def reconstructs(cls) -> bool:
        """Whether it predicts pixels."""
        return cls.reconstruct is not Method.reconstruct

    def frozen(self) -> tuple:
        """Networks that the loss uses and a checkpoint does not hold."""
        return ()

    def images(self, batch: dict, key: str = "image"):
        """The batch's images, normalised: float32 [B, 3, H, W]."""
        return normalize(batch[key], self.mean, self.std) if str(batch[key].dtype).endswith("uint8") else batch[key]


class Pretraining(Method):
    """AdamW with betas (0.9, 0.95) and two groups: no decay for vectors and biases."""

    task = "pretrain"

    def build_optimizer(self) -> AdamW:
        from ppssl.optim.groups import decay_groups, trainable

        return AdamW(decay_groups(trainable(self.model), self.config.train.weight_decay), betas=(0.9, 0.95))
