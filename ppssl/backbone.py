"""`ppssl.load_backbone`: a trained encoder as a ready layer for any other Paddle code, from any file the converter reads."""
import json
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from paddle import nn

from convert.contents import RUN_SECTIONS, Contents, Section, read
from convert.conversion import paddle_weights
from convert.families import Family, classifier_family
from convert.recognise import Network, registered
from convert.training import official_options
from ppssl.config import Size
from ppssl.data.transforms import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD
from ppssl.engine.rebuild import latest
from ppssl.engine.weights import assign
from ppssl.errors import BadRequest
from ppssl.methods.classify import check_complete, fit_encoder
from ppssl.methods.linprobe import attach_probe_head
from ppssl.models import registry
from ppssl.models.convvit import ConvViT
from ppssl.models.resnet import ResNet, online_encoder



def load_backbone(path: str | Path, section: str = "", **options) -> nn.Layer:
    """The encoder in a file, in evaluation mode, whatever wrote the file.

        backbone = ppssl.load_backbone("mae_pretrain_vit_base.pth")
        features = backbone.forward_features(images)      # [B, 3, 224, 224] float32 -> [B, 768]

    path: a PyTorch file of the authors, a converted file, a checkpoint or run folder of this project, a .pdparams.
    section: which of several state dicts, such as "model_ema"; by default the model's own.
    options: of the model's constructor, `img_size` (height, width), `num_classes`, `global_pool`, `drop_path_rate`, `num_heads`
    among them; the position table is resized to another `img_size`.

    The layer is ppssl's classifier of the family: a ViT, a ConvViT or a ResNet. `layer.forward_features(images)` takes
    images [B, C, H, W] float32, RGB in 0..1 minus `layer.mean` over `layer.std`, and gives features [B, D]. A file with
    a head gives `layer(images)` -> logits [B, classes]; without one, or with `num_classes=0`, it gives the features. They
    are what the file's classifier sees, and of a pretraining file the mean patch token, normalised by a new norm as
    finetuning starts it; `global_pool=False` takes the cls token (ConvViT: the first token) after the file's own norm.

    Raises convert.formats.Refused where the file is damaged or of no known network, BadRequest where it holds no encoder
    or the options do not fit it. Warns where no registered model has its sizes: files do not hold the number of heads.
    """
    found = read(latest(path))
    chosen = choose(found, section)
    if chosen.network.family.task == "head":
        raise BadRequest(f"{found.path} holds a {chosen.network.family.title} alone: give the file with BYOL's encoder")
    family = classifier_family(chosen.network.family)
    model = build(found, chosen.network, family, options)
    fill(model, chosen, found.path)
    model.mean, model.std = statistics(found, family)
    model.eval()
    return model


def choose(found: Contents, section: str) -> Section:
    """The section of that name, or the main one. Raises Refused, BadRequest."""
    if not section:
        return found.main
    names = {section, RUN_SECTIONS.get(section)}
    known = [s for s in found.sections if s.network]
    for candidate in known:
        if names & set(candidate.path):
            return candidate
    there = ", ".join(".".join(map(str, s.path)) for s in known) or "none"
    raise BadRequest(f"{found.path}: no weights under {section}; it has {there}")


def build(found: Contents, network: Network, family: Family, options: Mapping[str, Any]) -> nn.Layer:
    """A new classifier of the network's sizes, without a head where it has none."""
    sizes = {name: size for name, size in network.sizes.items() if name in family.sizes}
    entry = network.entry if network.family is family else registered(family, sizes)
    if entry:
        sizes = {name: size for name, size in sizes.items() if name in family.free}
    elif "num_heads" in sizes and "num_heads" not in options:
        warnings.warn(f"{found.path}: of no registered size, taken to have {sizes['num_heads']} heads: pass num_heads if it has others",
                      stacklevel=3)
    if "img_size" in sizes and "img_size" not in options:
        sizes["img_size"] = image_size(found, sizes["img_size"])
    arguments = {"num_classes": 0} | sizes | pooling(network, family) | dict(options)
    create = partial(registry.create, "classifier", entry) if entry else family.build or family.entries()[0].build
    return with_head(create, network, family, arguments)


def with_head(create: Callable, network: Network, family: Family, arguments: dict[str, Any]) -> nn.Layer:
    """The classifier with the head of the file's kind, or with none for 0 classes."""
    classes = arguments["num_classes"]
    if family.name == "byol" and not classes:             # a ResNet is built with a head
        model = create(**arguments | {"num_classes": 1})
        model.fc = nn.Identity()
        return model
    model = create(**arguments)
    if network.probe and classes:
        attach_probe_head(model)
    return model


def pooling(network: Network, family: Family) -> dict[str, bool]:
    """How the file's own classifier pools; the mean patch token where it has none."""
    if "global_pool" not in family.sizes:
        return {}
    own = network.family is family and "final norm" not in network.absent
    mean = network.sizes["global_pool"] if own else True
    easycv = own and family.name == "convmae" and network.naming.title.startswith("EasyCV")
    return {"global_pool": mean} | ({"skip_first": True} if easycv else {})


def stored_options(found: Contents) -> dict[str, Any]:
    """What the run that wrote the file was started with, where the file tells."""
    config = found.loaded.metadata.get("config")
    return json.loads(config) if config else official_options(found)


def image_size(found: Contents, measured: tuple[int, int]) -> tuple[int, int]:
    """The image size of the file's run; by its weights alone only squares can be told. Raises BadRequest."""
    stored = stored_options(found).get("input_size")
    if stored and math.prod(Size(stored)) == math.prod(measured):
        return Size(stored)
    if measured[0] != measured[1]:
        raise BadRequest(f"{found.path}: its positions are of no square image: pass img_size=(height, width)")
    return measured


def statistics(found: Contents, family: Family) -> tuple[tuple, tuple]:
    """Mean and deviation by which images have to be normalised, of values in 0..1."""
    if family.name == "bootmae" and not stored_options(found).get("imagenet_default_mean_and_std"):
        return INCEPTION_MEAN, INCEPTION_STD
    return IMAGENET_MEAN, IMAGENET_STD


def fill(model: nn.Layer, section: Section, path: Path) -> None:
    """Put a section's encoder, and its head where the model has one, into the model. Raises BadRequest."""
    weights = paddle_weights(section)
    tensors = online_encoder(weights) or weights
    own = model.state_dict()
    tensors = {key: value for key, value in tensors.items() if key in own or not key.startswith(("head.", "fc."))}
    if hasattr(model, "pos_embed"):
        fit_encoder(model, tensors, path)
    else:
        check_complete(model, assign(model, tensors), path)


def input_shape(backbone: nn.Layer) -> tuple[int, int | None, int | None]:
    """(channels, height, width) of the images a backbone takes; None for sides that may be any, as a ResNet's."""
    if isinstance(backbone, ResNet):
        return 3, None, None
    sized = backbone if isinstance(backbone, ConvViT) else backbone.patch_embed
    first = backbone.patch_embed1 if isinstance(backbone, ConvViT) else sized
    return first.proj.weight.shape[1], *sized.img_size
