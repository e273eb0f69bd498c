"""BYOL's linear evaluation: a linear layer on the frozen ResNet's pooled features."""
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from convert.legacy_byol import match_by_order
from convert.weights import SECTIONS, read_weights
from ppssl.config import Config, option
from ppssl.data.transforms import EvalTransform, PretrainTransform
from ppssl.engine.weights import assign
from ppssl.methods.classify import Classification, ClassifyOptions, check_complete, init_linear
from ppssl.methods.linprobe import LinearProbe
from ppssl.models import registry
from ppssl.models.resnet import ResNet, online_encoder
from ppssl.optim.groups import Group, trainable
from ppssl.optim.sgd import SGD

HEAD = "fc."


@dataclass(frozen=True)
class Options(ClassifyOptions):
    """Keys of the linear evaluation."""
    knn: bool = option(False, "also report the accuracy of a k-nearest-neighbour classifier on the frozen features")


class LinearEvaluation(LinearProbe):
    """SGD with momentum 0.9, a cosine from 1 to 0 over 100 epochs, bilinear crops.

    Source: blankWorld/BYOL-PyTorch `readme.md`, `data/byol_transform.py`.
    """

    name, title, families, Options = "byol_linear", "Linear evaluation of BYOL", ("byol",), Options
    defaults = {"batch_size": 256, "epochs": 100, "warmup_epochs": 0, "blr": 1.0, "weight_decay": 0.0}

    def __init__(self, config: Config, model: ResNet | None = None, world: int = 1):
        super().__init__(config, model, world)
        size = config.data.input_size
        self.transform = PretrainTransform(size, scale=(0.08, 1.0), interpolation="bilinear")
        self.eval_transform = EvalTransform(size, self.options.crop_pct, interpolation="bilinear")

    def build_model(self) -> ResNet:
        return registry.create("classifier", self.config.model, num_classes=self.num_classes)

    def prepare(self) -> None:
        """Start the linear layer anew, load the encoder and freeze it."""
        init_linear(self.model.head, self.head_std)
        Classification.prepare(self)
        freeze_encoder(self.model)

    def load(self, path: str) -> list[str]:
        return [load_backbone(self.model, path, with_head=self.options.eval)]

    def build_optimizer(self) -> SGD:
        head = tuple((name, p) for name, p in trainable(self.model) if name.startswith(HEAD))
        return SGD([Group(head, weight_decay=self.config.train.weight_decay)])


def freeze_encoder(model: ResNet) -> None:
    """Leave nothing but the head to be trained."""
    head = {id(p) for p in model.head.parameters()}
    for p in model.parameters():
        p.stop_gradient = id(p) not in head
        p.trainable = not p.stop_gradient


def load_backbone(model: ResNet, path: str, with_head: bool = False) -> str:
    """Load the encoder of a BYOL pretraining file (own, the authors', or their legacy one) or of a torchvision ResNet.

    Returns what to tell the user. Raises BadRequest or Refused where it does not fit.
    """
    state = read_weights(path, model, (*SECTIONS, "online_backbone"))
    tensors, how = backbone_tensors(state, {k: t.shape for k, t in model.state_dict().items()})
    dropped = () if with_head else (HEAD,)
    check_complete(model, assign(model, {k: v for k, v in tensors.items() if not k.startswith(dropped)}), path)
    return f"{path}: encoder loaded{how}"


def backbone_tensors(state: Mapping[str, np.ndarray],
                     shapes: Mapping[str, list[int]]) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of a file under torchvision's names, and how they were found; shapes: the classifier's own.

    A file without any known name is taken by order, as the authors' legacy file has to be. Raises Refused.
    """
    counters = {k: np.zeros([], np.int64) for k in shapes if k.endswith("num_batches_tracked")}    # old files have none
    if online := online_encoder(state):
        return counters | online, " (the online network's)"
    if any(k in shapes for k in state):
        return counters | dict(state), ""
    own = {k: s for k, s in shapes.items() if not k.startswith(HEAD)}
    return match_by_order(state, own), " (names unknown: matched by order)"
