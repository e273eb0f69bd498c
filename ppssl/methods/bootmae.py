"""BootMAE pretraining: the hidden patches' pixels, and their features as a moving average of the network sees them."""
import random
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from ppssl.config import Config, option
from ppssl.data.masks import BlockMask
from ppssl.data.transforms import PretrainTransform
from ppssl.errors import BadRequest
from ppssl.methods.base import Pretraining
from ppssl.methods.boot_common import BootSchedules, ScheduleOptions
from ppssl.models import registry
from ppssl.models.bootmae import hidden_mask, shuffled_order
from ppssl.optim.adamw import AdamW
from ppssl.optim.ema import WeightAverage
from ppssl.optim.groups import decay_groups, is_vector_or_bias, trainable
from ppssl.optim.schedules import Clock, feature_ramp, scale_lr, teacher_decay

MAX_ROLL = 3                                              # masked patches that may be shown after all


@dataclass(frozen=True)
class Options(ScheduleOptions):
    """Keys of BootMAE, with its official names."""
    mask_num: float = option(147, "hidden patches of an image (whole; more are hidden than the block mask has)")
    num_mask_patches: int = option(120, "patches of the block mask")
    min_mask_patches_per_block: int = option(16, "smallest area of a block, in patches")
    max_mask_patches_per_block: int = option(60, "most patches that one block adds")
    feature_weight: float = option(0.0, "weight of the feature loss after the run's first quarter; has to be given")
    weight_mask: bool = option(False, "weigh patches amid other hidden ones more, up to twice")
    model_ema: bool = option(False, "the teacher, a moving average of the network; has to be given")
    model_ema_decay: float = option(0.999, "its decay in the first epoch, growing to 0.9999 at epoch 100")
    model_ema_dynamic: bool = option(False, "let the decay grow on to 0.99999 at epoch 400")
    drop_path: float = option(0.0, "rate of stochastic depth at the encoder's last block")
    resize_scale: float = option(0.2, "smallest share of an image that a crop covers")


class BootMAE(BootSchedules, Pretraining):
    """Two losses on the hidden patches: normalised pixels, and a teacher's features.

    --lr (or --blr) is the peak rate for 256 images; --min_lr is not scaled.
    Source: LightDXY/BootMAE `run_pretraining.py`.
    """

    name, title, families, Options = "bootmae", "BootMAE pretraining", ("bootmae",), Options
    defaults = {"batch_size": 128, "epochs": 800, "blr": 5e-4, "min_lr": 1e-5, "warmup_epochs": 5, "resume": "auto"}
    accepted = BootSchedules.accepted | {
        "opt": (True, "the optimizer is AdamW"),
        "opt_eps": (True, "it is 1e-8"),
        "color_jitter": (True, "the augmentation has none"),
        "train_interpolation": (True, "crops are bicubic"),
        "second_input_size": (True, "there is no second image"),
        "second_interpolation": (True, "there is no second image"),
    }

    def __init__(self, config: Config, model=None, world: int = 1):
        super().__init__(config, model, world)
        train, o = config.train, self.options
        base_lr = train.blr if train.lr is None else train.lr
        self.peak_lr = scale_lr(base_lr, train.batch_size, train.accum_iter, world)
        self.check_schedules()
        self.check_losses()
        self.mask_num = int(o.mask_num)
        self.transform = PretrainTransform(config.data.input_size, scale=(o.resize_scale, 1.0))
        self.block_mask = self.build_block_mask()
        self.teacher = WeightAverage(self.model)

    def check_losses(self) -> None:
        """BadRequest for losses that cannot be computed."""
        o, patches = self.options, self.model.num_patches
        if o.feature_weight <= 0:
            raise BadRequest(f"--feature_weight must be positive, not {o.feature_weight:g}: the published runs have 1")
        if not o.model_ema:
            raise BadRequest("--feature_weight needs the teacher: add --model_ema")
        if not 1 <= o.mask_num <= patches:
            raise BadRequest(f"--mask_num {o.mask_num:g} of {patches} patches: give 1 to {patches}")

    def build_block_mask(self) -> BlockMask:
        """The masks' distribution, tried once. Raises BadRequest where it has none."""
        o = self.options
        try:
            masks = BlockMask(self.model.patch_embed.grid, o.num_mask_patches, o.min_mask_patches_per_block,
                              o.max_mask_patches_per_block)
            masks(random.Random(0))
        except ValueError as error:
            raise BadRequest(f"{error}: lower --num_mask_patches and --min_mask_patches_per_block") from None
        return masks

    def build_model(self):
        return registry.create("pretrain", self.config.model, img_size=self.config.data.input_size,
                               drop_path_rate=self.options.drop_path)

    def build_optimizer(self) -> AdamW:
        """The mask tokens decay, the cls token does not."""
        groups = decay_groups(trainable(self.model), self.config.train.weight_decay,
                              lambda name, p: is_vector_or_bias(name, p) or name in self.model.no_weight_decay)
        return AdamW(groups, betas=(0.9, 0.95))

    def sample(self, image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """image [H, W, 3] uint8 -> the augmented crop, its block mask [h, w], and the noise [h * w] and roll of its order.

        The official code draws one roll for a batch; here each image has its own, so that it does not depend on how
        images are shared out to ranks and micro-batches.
        """
        return {"image": self.transform(image, rng),
                "blocks": self.block_mask(random.Random(int(rng.integers(2 ** 62)))),
                "noise": rng.random(self.model.num_patches, np.float32),
                "roll": rng.integers(MAX_ROLL, endpoint=True)}

    def order(self, batch: dict):
        """The order [B, L] of a batch's patches."""
        return shuffled_order(batch["blocks"].flatten(1), batch["noise"], batch["roll"])

    def loss(self, forward, batch: dict, clock: Clock):
        o, images, order, patches = self.options, self.images(batch), self.order(batch), self.model.patch_embed
        with paddle.no_grad():
            target = self.teacher.network.patch_features(images)
            weight = patch_weights(order, self.mask_num, patches.grid, o.weight_mask)
        pixels, features = forward(images, order, self.mask_num)
        share = self.mask_num / order.shape[1]
        pixel_loss = (weight * pixel_errors(pixels, images, patches.patch_size)).mean() / share
        feature_loss = (weight * feature_errors(features, target)).mean() / share
        loss = pixel_loss + feature_ramp(clock.epoch, o.feature_weight, self.config.train.epochs) * feature_loss
        return loss, {"loss": loss, "pixel_loss": pixel_loss, "feature_loss": feature_loss}

    def after_step(self, clock: Clock) -> None:
        o = self.options
        self.teacher.update(teacher_decay(clock.epoch, o.model_ema_decay, o.model_ema_dynamic))

    def layers(self) -> dict:
        return {"model": self.model, "ema": self.teacher.network}

    def reconstruct(self, batch: dict):
        order = self.order(batch)
        pixels, _ = self.model(self.images(batch), order, self.mask_num)
        return pixels, hidden_mask(order, self.mask_num)[0], True


def patch_weights(order, mask_num: int, grid: tuple[int, int], favour_centres: bool):
    """Weight [B, L] of each patch in both losses: 1 where hidden, else 0.

    With `favour_centres` 1 + the share of hidden patches in its 3x3 neighbourhood, of which none is beyond the border.
    """
    mask = hidden_mask(order, mask_num)[0].reshape([-1, 1, *grid])
    if favour_centres:
        mask = mask + mask * F.avg_pool2d(mask, 3, 1, padding=1, exclusive=False)
    return mask.flatten(1)


def cut(images, patch: tuple[int, int]):
    """[B, C, H, W] -> [B, h * w, C, ph * pw], float32."""
    b, c, height, width = images.shape
    x = images.astype("float32").reshape([b, c, height // patch[0], patch[0], width // patch[1], patch[1]])
    return x.transpose([0, 2, 4, 1, 3, 5]).reshape([b, -1, c, patch[0] * patch[1]])


def normalized_patches(images, patch: tuple[int, int]):
    """The pixel target [B, L, C, ph * pw]: each channel of a patch by its own mean and (population) variance."""
    x = cut(images, patch)
    x = x - x.mean(-1, keepdim=True)
    return x / paddle.sqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def pixel_errors(pred, images, patch: tuple[int, int]):
    """Mean squared error [B, L] of the predicted image [B, C, H, W] in every patch."""
    with paddle.no_grad():
        target = normalized_patches(images, patch)
    return (cut(pred, patch) - target).square().flatten(2).mean(-1)


def feature_errors(pred, target):
    """Mean squared error [B, L] between features [B, L, D], both normalised over their channels, in float32."""
    pred, target = (F.layer_norm(x.astype("float32"), x.shape[-1:], epsilon=1e-6) for x in (pred, target))
    return (pred - target).square().mean(-1)
