"""TEC pretraining: a new model learns the features and the patch relations of a frozen base model."""
from dataclasses import dataclass

from ppssl.config import Config, option
from ppssl.errors import BadRequest
from ppssl.methods.base import Method
from ppssl.methods.mae import MAE
from ppssl.methods.tec_base import build_base, checkpoint_folder
from ppssl.models import registry
from ppssl.models.tec_base import BaseModel
from ppssl.optim.schedules import Clock


@dataclass(frozen=True)
class Options:
    """Keys of TEC, with its official names."""
    basemodel: str = option("", "base model: mae1kbase, mae1klarge, mae1k300ep or ibot1kbase")
    basemodel_ckpt: str = option("", "file with the base model: any ViT as wide as the new one, in any format")
    checkpoint_dir: str = option("", "folder of named base models (default: $PPSSL_CHECKPOINTS, else ./checkpoints)")
    mask_ratio: float = option(0.75, "share of patches that are removed")
    mlp_token: bool = option(False, "pass the cls token through an MLP (input adapter)")
    pred_att: bool = option(False, "also predict the base model's attention")
    topkatt: int = option(15, "number of patches, the most attended ones, whose attention is predicted")
    att_tau: float = option(1.8, "temperature of the base model's attention")
    last_layers: int = option(2, "number of the base model's last blocks whose mean output is the feature target")


class TEC(MAE):
    """Loss: error of the removed patches' features, plus cross entropy of attention.

    The base model is not in the checkpoint: a run that resumes reads its file again. Source: sail-sg/TEC
    `main_pretrain.py`, `engine_pretrain.py`.
    """

    name, title, families, Options = "tec", "TEC pretraining", ("tec",), Options
    defaults = {"seed": 5}
    reconstruct = Method.reconstruct                      # it predicts features, no pixels

    def __init__(self, config: Config, model=None, world: int = 1, base: BaseModel | None = None):
        """base: used instead of the one that the config names (tests and golden cases)."""
        super().__init__(config, model, world)
        o = self.options
        self.base = base or build_base(self.model, o.basemodel, o.basemodel_ckpt, checkpoint_folder(o.checkpoint_dir),
                                       config.dry_run)
        check_range("last_layers", o.last_layers, self.base.num_blocks)
        if o.pred_att:
            check_range("topkatt", o.topkatt, self.model.num_patches)

    def build_model(self):
        """The new model. TEC's commands use MAE's model names."""
        o, name = self.options, "tec_" + self.config.model.removeprefix("mae_").removeprefix("tec_")
        known = [e.name for e in registry.entries("pretrain") if e.family == "tec"]
        if name not in known:
            raise BadRequest(f"TEC has no model of the size of {self.config.model}: there are {', '.join(known)}")
        return registry.create("pretrain", name, img_size=self.config.data.input_size, mlp_token=o.mlp_token,
                               pred_att=o.pred_att, att_tau=o.att_tau)

    def loss(self, forward, batch: dict, clock: Clock):
        images, o = self.images(batch), self.options
        targets = self.base.targets(images, o.last_layers, o.topkatt if o.pred_att else None)
        losses = forward(images, batch["noise"], o.mask_ratio, targets)
        loss = sum(losses.values())
        return loss, {"loss": loss} | losses

    def frozen(self) -> tuple:
        return (self.base,)


def check_range(flag: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise BadRequest(f"--{flag} must be 1 to {most} with these models, not {value}")
