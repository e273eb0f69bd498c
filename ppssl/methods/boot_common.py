"""What BootMAE's pretraining and finetuning share: schedules by the step, pixel statistics, flags that do nothing."""
from dataclasses import dataclass

from ppssl.config import option
from ppssl.data.transforms import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD
from ppssl.errors import BadRequest
from ppssl.optim.schedules import Clock, step_cosine, step_drop

IMAGES = (True, "images come from the class folders of --data_path")     # of the flags that named other sources
DROP_EPOCHS = 100                                         # at the end of --lr_scheduler step


@dataclass(frozen=True)
class ScheduleOptions:
    """Keys of the schedules and of the images' normalisation."""
    lr_scheduler: str = option("cos", "cos, or step: the peak, and a tenth of it over the last 100 epochs")
    warmup_steps: int = option(-1, "optimizer steps of warm-up, used instead of --warmup_epochs where positive")
    weight_decay_end: float | None = option(None, "where the cosine of the weight decay ends (default: it stays)")
    imagenet_default_mean_and_std: bool = option(False, "normalise with ImageNet's mean and deviation, not with 0.5")


class BootSchedules:
    """Mixin of the methods with `ScheduleOptions`. Sources: LightDXY/BootMAE `run_pretraining.py`, `utils.py`."""

    accepted = {
        "abs_pos_emb": (False, "position tables are fixed sines and cosines"),
        "rel_pos_bias": (False, "the networks have no relative positions"),
        "disable_rel_pos_bias": (False, "the networks have no relative positions"),
        "layer_scale_init_value": (True, "the networks have no layer scale"),
        "warmup_lr": (True, "the warm-up starts at 0"),
        "momentum": (True, "it belongs to SGD"),
        "auto_resume": (False, "it is the default: --resume auto"),
        "data": IMAGES,
    }

    def check_schedules(self) -> None:
        """BadRequest for a schedule that does not exist or has no room."""
        train, o = self.config.train, self.options
        if o.lr_scheduler not in ("cos", "step"):
            raise BadRequest(f"--lr_scheduler must be cos or step, not {o.lr_scheduler}")
        if o.lr_scheduler == "step" and train.epochs < DROP_EPOCHS + train.warmup_epochs:
            raise BadRequest(f"--lr_scheduler step needs {DROP_EPOCHS} epochs after the warm-up: raise --epochs or use cos")

    @property
    def mean(self) -> tuple:
        return IMAGENET_MEAN if self.options.imagenet_default_mean_and_std else INCEPTION_MEAN

    @property
    def std(self) -> tuple:
        return IMAGENET_STD if self.options.imagenet_default_mean_and_std else INCEPTION_STD

    def rates(self, clock: Clock) -> tuple[float, float]:
        """Learning rate and weight decay by the optimizer step, counted from the first epoch of all."""
        train, o = self.config.train, self.options
        per_epoch = clock.batches // train.accum_iter
        step, steps = clock.epoch * per_epoch + clock.batch // train.accum_iter, train.epochs * per_epoch
        warmup = o.warmup_steps if o.warmup_steps > 0 else int(train.warmup_epochs * per_epoch)
        if o.lr_scheduler == "cos":
            lr = step_cosine(step, self.peak_lr, train.min_lr, warmup, steps)
        else:
            lr = step_drop(step, self.peak_lr, warmup, steps - DROP_EPOCHS * per_epoch)
        end = train.weight_decay if o.weight_decay_end is None else o.weight_decay_end
        return lr, step_cosine(step, train.weight_decay, end, 0, steps)
