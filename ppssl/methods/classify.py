"""What finetuning and linear probing share: a classifier started from a pretrained encoder, and its evaluation."""
import os
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from convert import contents
from convert.formats import Refused
from convert.weights import read_weights
from ppssl.config import option
from ppssl.data.transforms import EvalTransform
from ppssl.engine.weights import LoadReport, assign
from ppssl.errors import BadRequest
from ppssl.methods.base import Method
from ppssl.models.pos_embed import resize_table


@dataclass(frozen=True)
class ClassifyOptions:
    """Keys of every task that trains a classifier."""
    finetune: str = option("", "file with the pretrained encoder, of any format the converter reads")
    nb_classes: int | None = option(None, "number of classes (default: the class folders of the training set)")
    eval: bool = option(False, "evaluate the weights of --resume or --finetune on val/ and stop")
    crop_pct: float | None = option(None, "evaluation crop as share of the resized side (default: 224/256, above 224 px 1)")


class Classification(Method):
    """A classifier, its encoder loaded from --finetune."""

    families = ("mae", "convmae", "fastconvmae")
    head_std = 2e-5                                       # spread of the new head's weights

    def __init__(self, config, model=None, world: int = 1):
        super().__init__(config, model, world)
        self.eval_transform = EvalTransform(config.data.input_size, self.options.crop_pct)
        if model is None:
            self.prepare()

    def prepare(self) -> None:
        """Load the encoder and start the head. A dry run says that the file is missing and goes on."""
        if self.options.finetune and self.config.dry_run and not os.path.exists(self.options.finetune):
            print(f"note: there is no file {self.options.finetune} yet")
        elif self.options.finetune:
            for line in self.load(self.options.finetune):
                print(line, flush=True)

    def load(self, path: str) -> list[str]:
        """Take the encoder from a file and start the head anew; returns what to tell the user."""
        said = load_encoder(self.model, path)
        if not self.options.eval:
            init_linear(self.model.head, self.head_std)
        return said

    @property
    def num_classes(self) -> int:
        return self.options.nb_classes or 1000

    def eval_sample(self, image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": self.eval_transform(image), "label": np.int64(label)}

    def evaluated(self) -> dict:
        return {"": self.model}


def init_linear(head, std: float) -> None:
    """Weights from a normal distribution, bias 0."""
    head.weight.set_value(paddle.normal(0.0, std, head.weight.shape))
    head.bias.set_value(paddle.zeros(head.bias.shape))


def load_encoder(model, path: str) -> list[str]:
    """`fit_encoder` with the weights of a file."""
    return fit_encoder(model, read_weights(path, model), path)


def fit_encoder(model, tensors: dict[str, np.ndarray], path: str) -> list[str]:
    """Put a pretraining (or classifier) file's weights into a classifier as the official scripts do; returns what to tell the user.

    Dropped: a head of another number of classes, and what only pretraining needs (`model.pretraining_only`). Resized: the
    position table. Left at its start: `model.not_pretrained`. Anything else raises BadRequest with the fix.
    """
    said = [f"{path}: encoder loaded"]
    own = model.state_dict()
    for key in [k for k in tensors if k.startswith("head.") and (k not in own or list(tensors[k].shape) != own[k].shape)]:
        del tensors[key]
        said.append(f"  {key} dropped: another number of classes")
    said += fit_position_table(model, tensors)
    dropped = [k for k in tensors if k not in own and k.startswith(model.pretraining_only)]
    report = assign(model, {k: v for k, v in tensors.items() if k not in dropped})
    check_complete(model, report, path)
    if dropped:
        said.append(f"  {len(dropped)} tensors of pretraining dropped ({', '.join(sorted({k.split('.')[0] for k in dropped}))})")
    if holds_token_mlp(dropped):
        said.append("  warning: without its token MLP the cls token means nothing: finetune with --mlp_token, or fold it in first "
                    "(python -m convert fold-tec)")
    if report.missing:
        said.append(f"  new: {', '.join(report.missing)}")
    return said


def fit_position_table(model, tensors: dict[str, np.ndarray]) -> list[str]:
    """Resize the file's pos_embed to the model's grid where only the grids differ."""
    own, table = model.pos_embed.shape, tensors.get("pos_embed")
    if table is None or list(table.shape) == own or table.shape[-1] != own[-1]:
        return []
    new_grid = model.grid
    extra = own[1] - new_grid[0] * new_grid[1]
    side = round((table.shape[1] - extra) ** 0.5)
    if side * side != table.shape[1] - extra:
        return []                                         # not a square grid: reported as a tensor of another shape
    tensors["pos_embed"] = resize_table(np.asarray(table, np.float32), (side, side), new_grid)
    return [f"  pos_embed resized from {side}x{side} to {new_grid[0]}x{new_grid[1]}"]


def check_complete(model, report: LoadReport, path: str) -> None:
    """BadRequest unless only the tensors that the official code leaves at their start are missing."""
    lost = [k for k in report.missing if not k.startswith(model.not_pretrained)]
    known = [k for k in (*report.loaded, *report.mismatched) if not k.startswith(model.not_pretrained)]
    if not (lost or report.mismatched or report.unexpected):
        return
    if holds_token_mlp(lost) and not holds_token_mlp(known):
        raise BadRequest(f"{path} holds no token MLP (cls_token_mlp): leave out --mlp_token")
    if len(known) <= len(report.unexpected):
        wrong = "holds no encoder for this model: give a pretraining checkpoint of the same family, or see python -m convert inspect"
    elif report.mismatched:
        wrong = f"is of another size: {', '.join(report.mismatched[:3])} differ in shape; choose the --model it was trained as"
    else:
        wrong = f"does not fit: missing {lost[:3]}, unknown {list(report.unexpected[:3])}; choose the --model it was trained as"
    raise BadRequest(f"{path}{recognised(path)} {wrong}")


def holds_token_mlp(keys) -> bool:
    return any(k.startswith("cls_token_mlp.") for k in keys)


def recognised(path: str) -> str:
    """The network in a file, in brackets; nothing where it is none that the converter knows."""
    try:
        return f" ({contents.read(path).main.network.title})"
    except Refused:
        return ""


def soft_cross_entropy(logits, targets):
    """Mean over the batch of -sum(target * log softmax(logit)); logits, targets [B, C]; float32."""
    return (-targets * F.log_softmax(logits.astype("float32"), axis=-1)).sum(-1).mean()


def smoothed_cross_entropy(logits, labels, smoothing: float):
    """(1 - s) * nll + s * mean over classes of -log softmax: timm's LabelSmoothingCrossEntropy. labels [B] int64."""
    log_probs = F.log_softmax(logits.astype("float32"), axis=-1)
    nll = -log_probs.take_along_axis(labels.unsqueeze(1), axis=1).squeeze(1)
    return ((1 - smoothing) * nll - smoothing * log_probs.mean(-1)).mean()
