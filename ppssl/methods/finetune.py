"""Finetuning: the whole classifier, layer-wise learning rates, strong augmentation."""
from dataclasses import dataclass
from functools import partial

import numpy as np

from ppssl.config import Config, Pair, option
from ppssl.data.erasing import draw_erasing_box, erase, erasing_noise
from ppssl.data.mixup import MixupParams, apply_mixup, draw_mixup
from ppssl.data.transforms import FinetuneTransform
from ppssl.dist import rank
from ppssl.errors import BadRequest
from ppssl.methods.classify import Classification, ClassifyOptions, smoothed_cross_entropy, soft_cross_entropy
from ppssl.models import registry
from ppssl.optim.adamw import AdamW
from ppssl.optim.ema import WeightAverage
from ppssl.optim.groups import layer_decay_groups, trainable
from ppssl.optim.schedules import Clock


@dataclass(frozen=True)
class Options(ClassifyOptions):
    """Keys of finetuning, with MAE's official names."""
    global_pool: bool = option(True, "classify the mean patch token; --cls_token takes the cls token", negative="cls_token")
    mlp_token: bool = option(False, "pass the cls token through an MLP, as TEC's pretraining did")
    drop_path: float = option(0.1, "rate of stochastic depth at the last block")
    layer_decay: float = option(0.75, "learning-rate factor from each layer to the one before it")
    aa: str = option("rand-m9-mstd0.5-inc1", "RandAugment policy; 'none' for none")
    color_jitter: float | None = option(None, "strength of colour jitter, used without --aa only")
    train_interpolation: str = option("bicubic", "bicubic, bilinear or random")
    smoothing: float = option(0.1, "label smoothing")
    reprob: float = option(0.25, "chance that a random box of an image is erased")
    remode: str = option("pixel", "what fills it: pixel, rand or const")
    recount: int = option(1, "largest number of boxes")
    mixup: float = option(0.0, "Beta strength of mixup, 0 off")
    cutmix: float = option(0.0, "Beta strength of CutMix, 0 off")
    cutmix_minmax: Pair | None = option(None, "smallest and largest share of a side for CutMix boxes, as 0.2,0.8")
    mixup_prob: float = option(1.0, "chance that a batch is mixed")
    mixup_switch_prob: float = option(0.5, "chance of CutMix where both are on")
    mixup_mode: str = option("batch", "one draw per batch, pair or elem")
    model_ema: bool = option(False, "keep a moving average of the weights and evaluate it too")
    model_ema_decay: float = option(0.9999, "decay of that average")


class Finetune(Classification):
    """AdamW with layer-wise learning-rate decay. Source: facebookresearch/mae `main_finetune.py`, `engine_finetune.py`."""

    name, title, task, Options = "finetune", "Finetuning", "finetune", Options
    families = (*Classification.families, "tec")
    defaults = {"epochs": 50, "warmup_epochs": 5, "min_lr": 1e-6}

    def __init__(self, config: Config, model=None, world: int = 1):
        super().__init__(config, model, world)
        o = self.options
        self.transform = FinetuneTransform(config.data.input_size, None if o.aa in ("", "none") else o.aa, color_jitter=o.color_jitter,
                                           interpolation=o.train_interpolation)
        self.mixup = MixupParams(o.mixup, o.cutmix, o.cutmix_minmax, o.mixup_prob, o.mixup_switch_prob, o.mixup_mode, o.smoothing,
                                 self.num_classes) if o.mixup > 0 or o.cutmix > 0 or o.cutmix_minmax else None
        if self.mixup and config.train.batch_size % 2:
            raise BadRequest(f"mixup needs an even --batch_size, not {config.train.batch_size}")
        self.average = WeightAverage(self.model) if o.model_ema else None

    def build_model(self):
        o, name = self.options, self.config.model
        if o.mlp_token and registry.find("classifier", name).family not in ("mae", "tec"):
            raise BadRequest(f"--mlp_token is for TEC's models, such as vit_base_patch16, not for {name}: leave it out")
        extra = {"mlp_token": True} if o.mlp_token else {}
        return registry.create("classifier", name, img_size=self.config.data.input_size, num_classes=self.num_classes,
                               drop_path_rate=o.drop_path, global_pool=o.global_pool, **extra)

    def sample(self, image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """image [H, W, 3] uint8 -> augmented image, label, boxes to erase [recount, 4], numbers deciding drop path [blocks, 2]."""
        o, size = self.options, self.config.data.input_size
        return {"image": self.transform(image, rng), "label": np.int64(label),
                "erase": draw_erasing_box(size, rng, o.reprob, count=o.recount),
                "path_noise": rng.random((self.model.num_blocks, 2), np.float32)}

    def loss(self, forward, batch: dict, clock: Clock):
        """Cross entropy with the soft targets of the batch or of mixup, else smoothed, else plain."""
        images = self.images(batch)
        if "erase" in batch:
            images = erase(images, batch["erase"], erasing_noise(batch["erase"], images.shape, self.options.remode))
        target = batch.get("target")
        if self.mixup:
            rng = np.random.default_rng([self.config.run.seed, clock.epoch, clock.batch, rank()])
            images, target = apply_mixup(images, batch["label"], draw_mixup(len(images), images.shape[2:], self.mixup, rng), self.mixup)
        logits = forward(images, batch.get("path_noise"))
        if target is not None:
            loss = soft_cross_entropy(logits, target)
        else:
            loss = smoothed_cross_entropy(logits, batch["label"], self.options.smoothing)
        return loss, {"loss": loss}

    def build_optimizer(self) -> AdamW:
        return AdamW(self.groups())

    def groups(self):
        """Layer i of L learns at layer_decay ** (L - i) of the rate; vectors and the model's own list do not decay."""
        model = self.model
        return layer_decay_groups(trainable(model), self.config.train.weight_decay, model.layer_of,
                                  partial(decayed_scale, self.options.layer_decay, model.num_layers),
                                  lambda name, p: p.ndim == 1 or name in model.no_weight_decay)

    def after_step(self, clock: Clock) -> None:
        if self.average:
            self.average.update(self.options.model_ema_decay)

    def evaluated(self) -> dict:
        return {"": self.model} | ({"ema_": self.average.network} if self.average else {})

    def layers(self) -> dict:
        return {"model": self.model} | ({"ema": self.average.network} if self.average else {})


def decayed_scale(layer_decay: float, num_layers: int, layer: int) -> float:
    """The learning-rate scale of a layer; negative layers count from the end, -1 being the last."""
    return layer_decay ** (num_layers - layer % (num_layers + 1))
