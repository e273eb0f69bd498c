"""BootMAE's finetuning: ViT's, with its own schedules, loading, layer scales and pixel statistics."""
import dataclasses
from dataclasses import dataclass
from functools import partial

from ppssl.config import Config, Train, option
from ppssl.errors import BadRequest
from ppssl.methods import finetune
from ppssl.methods.boot_common import IMAGES, BootSchedules, ScheduleOptions
from ppssl.methods.boot_load import read_encoder
from ppssl.methods.classify import fit_encoder, init_linear
from ppssl.optim.groups import layer_decay_groups, trainable

HEAD_STD = 0.02                                           # times --init_scale


@dataclass(frozen=True)
class Options(ScheduleOptions, finetune.Options):
    """Keys of BootMAE's finetuning, with its official names."""
    global_pool: bool = option(True, "classify the mean patch token; --use_cls takes the cls token",
                               alias="use_mean_pooling", negative="use_cls")
    model_key: str = option("model|module", "section of the --finetune file, the first present; model_ema: the teacher")
    model_prefix: str = option("", "what the names of the file's tensors begin with")
    init_scale: float = option(0.001, "factor of the new head's weights")
    backbone_decay: float = option(1.0, "factor of all learning rates but the head's")


class BootFinetune(BootSchedules, finetune.Finetune):
    """AdamW at --lr as it is given, whatever the batch. Source: LightDXY/BootMAE `run_class_finetuning.py`."""

    name, title, families, Options = "bootmae", "BootMAE finetuning", ("bootmae",), Options
    defaults = {"batch_size": 64, "epochs": 30, "lr": 5e-4, "min_lr": 1e-6, "warmup_epochs": 5, "layer_decay": 0.9,
                "color_jitter": 0.4, "save_freq": 5, "resume": "auto"}
    accepted = BootSchedules.accepted | {
        "data_set": IMAGES,
        "eval_all": (False, "every epoch is evaluated, the average included"),
        "disable_weight_decay_on_rel_pos_bias": (False, "the networks have no relative positions"),
    }

    def __init__(self, config: Config, model=None, world: int = 1):
        super().__init__(config, model, world)
        self.check_schedules()
        if config.train.lr is None or config.train.blr != Train.blr:
            raise BadRequest("BootMAE's finetuning takes the learning rate as it is: give --lr, not --blr")
        crop_pct = self.options.crop_pct or (224 / 256 if max(config.data.input_size) < 384 else 1.0)
        self.transform = dataclasses.replace(self.transform, mean=self.mean)
        self.eval_transform = dataclasses.replace(self.eval_transform, crop_pct=crop_pct)

    def prepare(self) -> None:
        """Start the head, then load what the file has; a head of the same number of classes is kept."""
        init_linear(self.model.head, HEAD_STD * self.options.init_scale)
        super().prepare()

    def load(self, path: str) -> list[str]:
        o = self.options
        return fit_encoder(self.model, read_encoder(path, self.model, o.model_key, o.model_prefix), path)

    def groups(self):
        """Layer i of L learns at backbone_decay * layer_decay ** (L - i) of the rate, the head at the rate itself.

        --layer_decay 1 and above lets all learn alike.
        """
        model, o = self.model, self.options
        layer_of = model.layer_of if o.layer_decay < 1 else (lambda name: model.num_layers)
        return layer_decay_groups(trainable(model), self.config.train.weight_decay, layer_of,
                                  partial(backbone_scale, o.backbone_decay, o.layer_decay, model.num_layers),
                                  lambda name, p: p.ndim == 1 or name in model.no_weight_decay)


def backbone_scale(backbone_decay: float, layer_decay: float, num_layers: int, layer: int) -> float:
    return backbone_decay * layer_decay ** (num_layers - layer) if layer < num_layers else 1.0
