"""Pretraining by masked reconstruction: MAE, and with the same behaviour ConvMAE and FastConvMAE."""
from dataclasses import dataclass

import numpy as np

from ppssl.config import Config, option
from ppssl.data.transforms import PretrainTransform
from ppssl.errors import BadRequest
from ppssl.methods.base import Pretraining
from ppssl.models import registry
from ppssl.models.fastconvmae import FastConvMAE, count_views
from ppssl.optim.schedules import Clock


@dataclass(frozen=True)
class Options:
    """Keys of masked reconstruction."""
    mask_ratio: float = option(0.75, "share of patches that are removed")
    norm_pix_loss: bool = option(False, "predict each patch's pixels normalised by its own mean and variance")


class MAE(Pretraining):
    """Loss: squared error of the removed patches' pixels. Source: facebookresearch/mae `engine_pretrain.py`."""

    name, title, families, Options = "mae", "MAE pretraining", ("mae", "convmae", "fastconvmae"), Options

    def __init__(self, config: Config, model=None, world: int = 1):
        super().__init__(config, model, world)
        self.transform = PretrainTransform(config.data.input_size)
        check_mask(self.model.num_patches, self.options.mask_ratio)
        if isinstance(self.model, FastConvMAE):
            count_views(self.model.num_patches, self.options.mask_ratio)                       # refuses before anything runs

    def build_model(self):
        return registry.create("pretrain", self.config.model, img_size=self.config.data.input_size,
                               norm_pix_loss=self.options.norm_pix_loss)

    def sample(self, image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """image [H, W, 3] uint8 -> the augmented crop and the noise [N] that orders its patches."""
        return {"image": self.transform(image, rng), "noise": rng.random(self.model.num_patches, np.float32)}

    def loss(self, forward, batch: dict, clock: Clock):
        loss, _, _ = forward(self.images(batch), batch["noise"], self.options.mask_ratio)
        return loss, {"loss": loss}

    def reconstruct(self, batch: dict):
        images = self.images(batch)
        _, pred, mask = self.model(images, batch["noise"], self.options.mask_ratio)
        first = slice(images.shape[0])                                                         # of several views of an image
        return self.model.to_image(pred[first]), mask[first], self.options.norm_pix_loss


def check_mask(patches: int, ratio: float) -> None:
    """BadRequest where nothing of an image is hidden, or nothing is left."""
    kept = int(patches * (1 - ratio))
    if not 0 < kept < patches:
        raise BadRequest(f"--mask_ratio {ratio:g} keeps {max(kept, 0)} of {patches} patches: the published runs hide 0.75 of them")
