"""Pretraining by bootstrapping: BYOL."""
from dataclasses import dataclass

import numpy as np
import paddle

from ppssl.config import Config, option
from ppssl.data.device import normalize
from ppssl.data.transforms import TwoViews
from ppssl.errors import BadRequest
from ppssl.methods.base import Pretraining
from ppssl.models import registry
from ppssl.models.byol import BYOLModel, byol_loss
from ppssl.optim.groups import trainable
from ppssl.optim.lars import LarsSGD, byol_groups
from ppssl.optim.schedules import Clock, byol_lr, byol_momentum, byol_steps


@dataclass(frozen=True)
class Options:
    """Keys of BYOL, with the names of its official YAML file where it has them."""
    base_momentum: float = option(0.99, "the target's momentum at the start; it ends at 1")
    momentum: float = option(0.9, "momentum of LARS")
    exclude_bias_and_bn: bool = option(True, "no decay and no adaptation for biases and batch norms")
    num_examples: int | None = option(None, "images of an epoch in the schedules (default: those that fill whole batches)")
    projection_dim: int | None = option(None, "width of projections and predictions (default: the model's own)")
    projection_hidden: int | None = option(None, "hidden width of the projector (default: the model's own)")
    prediction_hidden: int | None = option(None, "hidden width of the predictor (default: the model's own)")


class BYOL(Pretraining):
    """Predict the target's projection of one view from the other, both ways; LARS.

    Source: blankWorld/BYOL-PyTorch `trainer/byol_trainer.py`.
    """

    name, title, families, Options = "byol", "BYOL pretraining", ("byol",), Options
    defaults = {"batch_size": 128, "epochs": 300, "warmup_epochs": 10, "blr": 0.3, "weight_decay": 1e-6, "num_workers": 8,
                "amp": "none", "print_freq": 10}

    def __init__(self, config: Config, model: BYOLModel | None = None, world: int = 1):
        if config.train.min_lr:
            raise BadRequest("BYOL's learning rate starts and ends by a rule of its own: leave --min_lr out")
        super().__init__(config, model, world)
        self.micro_batch = config.train.batch_size * world
        self.transform = TwoViews(config.data.input_size)

    def build_model(self) -> BYOLModel:
        o = self.options
        widths = {"dim": o.projection_dim, "projection_hidden": o.projection_hidden,
                  "prediction_hidden": o.prediction_hidden}
        model = registry.create("pretrain", self.config.model, **{k: v for k, v in widths.items() if v is not None})
        model.align_target()
        return model

    def sample(self, image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """image [H, W, 3] uint8 -> its two views [2, h, w, 3] uint8."""
        return {"views": self.transform(image, rng)}

    def loss(self, forward, batch: dict, clock: Clock):
        """The mean of both directions. The target moves before its own pass and before the online network's step.

        Both networks see both views as one batch, so batch norms take their statistics over the two together.
        """
        first, second = (normalize(batch["views"][:, i], self.mean, self.std) for i in range(2))         # each [B, 3, H, W]
        predictions = forward(paddle.concat([first, second]))
        if clock.batch % self.config.train.accum_iter == 0:
            self.model.update_target(self.target_momentum(clock))
        with paddle.no_grad():
            targets = self.model.target_network(paddle.concat([second, first]))
        loss = byol_loss(predictions, targets)
        return loss, {"loss": loss}

    def rates(self, clock: Clock) -> tuple[float, None]:
        warmup, total = (self._steps(e, clock) for e in (self.config.train.warmup_epochs, self.config.train.epochs))
        return byol_lr(clock.step, self.peak_lr, warmup, total), None

    def target_momentum(self, clock: Clock) -> float:
        return byol_momentum(clock.step, self.options.base_momentum, self._steps(self.config.train.epochs, clock))

    def _steps(self, epochs: float, clock: Clock) -> int:
        """Optimizer steps in so many epochs."""
        examples = self.options.num_examples or clock.batches * self.micro_batch
        return byol_steps(epochs, examples, self.micro_batch * self.config.train.accum_iter)

    def build_optimizer(self) -> LarsSGD:
        train, o = self.config.train, self.options
        groups, excluded = byol_groups(trainable(self.model), train.weight_decay, o.exclude_bias_and_bn)
        return LarsSGD(groups, o.momentum, excluded=excluded)
