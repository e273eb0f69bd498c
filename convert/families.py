"""What the converter knows of each family: one table a network, and the names that publishers gave its tensors.

A table says how to read the network's constructor arguments off its weights and which of its parts a file may leave
out. Everything else (names, order, layout, shapes) is read off the model built from these arguments, so nothing here
has an inverse that could disagree with it.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from convert.sizes import Measure, among, axis, count, each, fan_in, has, heads, image, kernel, optional, ratio
from ppssl.models import registry


@dataclass(frozen=True)
class Family:
    """One kind of network. name, task: as registered with `ppssl.models.registry`.

    sizes: constructor argument -> measure. free: those that a registered model of any size may be built with.
    parts: what a file may lack as a whole: {name: prefixes of its keys}. like: other methods whose keys are the same.
    build: from the sizes, where the registered functions do not take all of them.
    """
    name: str
    task: str
    title: str
    sizes: Mapping[str, Measure]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    free: tuple[str, ...] = ("img_size", "in_chans")
    like: str = ""
    build: Callable | None = None

    def create(self, name: str | None, sizes: Mapping):
        """A model: the registered one of that name with its free sizes, or without a name one of exactly these."""
        if name:
            return registry.create(self.task, name, **{k: v for k, v in sizes.items() if k in self.free})
        return (self.build or self.entries()[0].build)(**sizes)

    def entries(self) -> list[registry.Entry]:
        """The registered models of this family, aliases left out; none while the family is not there."""
        found = [e for e in registry.entries(self.task) if e.family == self.name]
        return [e for e in found if e.name == e.build.__name__]


@dataclass(frozen=True)
class Naming:
    """Other names of a family's tensors.

    prefixes: {prefix in the file: official prefix}. carried: official prefixes of tensors that have no place in the
    network and are kept as they are.
    """
    title: str
    prefixes: Mapping[str, str]
    carried: tuple[str, ...] = ()

    def official(self, key: str) -> str | None:
        """The official key of a file's key; None for a carried one."""
        for prefix, replacement in self.prefixes.items():
            if key.startswith(prefix):
                key = replacement + key.removeprefix(prefix)
                break
        return None if key.startswith(self.carried) else key


OFFICIAL = Naming("official names", {})
NAMINGS = (
    OFFICIAL,
    Naming("EasyCV pretraining names", {"encoder.": "", "decoder.": ""}),
    Naming("EasyCV classifier names", {"backbone.": "", "head.fc_cls.": "head."}),
    Naming("iBOT names", {"backbone.": ""}, carried=("head.", "masked_embed")),
    Naming("official names beside a head", {"encoder.": ""}, carried=("head.",)),
)

# Names under which files keep weights, the most wanted first
SECTIONS = ("model", "state_dict", "student", "module", "online_backbone", "model_ema", "teacher")

WIDTH = axis("pos_embed", 2)
PATCH = "patch_embed.proj.weight"
STRIDES = ("patch_embed1.proj.weight", "patch_embed2.proj.weight", "patch_embed3.proj.weight")
DECODER_WIDTH = among("decoder_embed.bias", "forward_fea_decoder.decoder_embed.bias")

VIT = {"img_size": image("pos_embed", PATCH, extra=1), "patch_size": kernel(PATCH), "in_chans": axis(PATCH, 1),
       "embed_dim": WIDTH, "depth": count("blocks"), "num_heads": heads(WIDTH),
       "mlp_ratio": ratio("blocks.0.mlp.fc1.bias", WIDTH)}
DECODER = {"decoder_embed_dim": DECODER_WIDTH, "decoder_depth": optional(count("decoder_blocks")),
           "decoder_num_heads": heads(DECODER_WIDTH)}
CONVVIT = {"img_size": image("pos_embed", *STRIDES), "in_chans": axis(STRIDES[0], 1),
           "patch_size": each(*(axis(key, 2) for key in STRIDES)),
           "embed_dim": each(*(axis(key, 0) for key in STRIDES)),
           "depth": each(*(count(f"blocks{i}") for i in (1, 2, 3))), "num_heads": heads(WIDTH),
           "mlp_ratio": each(*(ratio(f"blocks{i}.0.mlp.fc1.bias", axis(STRIDES[i - 1], 0)) for i in (1, 2, 3)))}
CONV_DECODER = DECODER | {"decoder_mlp_ratio": optional(ratio("decoder_blocks.0.mlp.fc1.bias", DECODER_WIDTH))}
CONV_PARTS = {"final norm": ("norm.",), "decoder": ("mask_token", "decoder_"),
              "fusion of stages 1 and 2": ("stage1_output_decode.", "stage2_output_decode.")}
BOOT = VIT | {"num_heads": heads(WIDTH, (WIDTH, "blocks.0.attn.q_bias"))}
BOOT_WIDTH = axis("mask_token", 2)
BOOT_DECODER = {
    "decode_dim": optional(BOOT_WIDTH), "decoder_depth": optional(count("decode_blocks")),
    "fea_list": lambda shapes: (0, count("blocks")(shapes) - 1),             # no weights tell: as every official model
    "num_heads": heads(WIDTH, (WIDTH, "blocks.0.attn.q_bias"), (BOOT_WIDTH, "decode_blocks.0.attn.q_bias"))}
BOOT_PARTS = {"final norm": ("norm.",), "decoders": ("mask_token", "de_pos_embed", "decode_", "down", "lm_head")}
MLP_TOKEN = {"mlp_token": has("cls_token_mlp.fc1.weight")}
TEC_DECODERS = DECODER | {"num_adap": count("encoder_adaptor.fuse_fcs"),
                          "pred_dim": among("forward_fea_decoder.decoder_pred.bias"),
                          "pred_att": has("forward_att_decoder.decoder_qk.weight")}
CLASSIFIER = {"num_classes": among("head.bias", "head.1.bias"), "global_pool": has("fc_norm.weight")}
CLASSIFIER_PARTS = {"final norm": ("norm.", "fc_norm."), "head": ("head.",)}
FREE = ("img_size", "in_chans")
FREE_CLASSIFIER = (*FREE, *CLASSIFIER)


def resnet(*prefixes: str) -> Measure:
    """ResNet's arguments; prefixes: of the stem's convolution and of every stage that could be there."""
    def measure(shapes) -> dict:
        stem, *stages = prefixes
        stages = [s for s in stages if f"{s}.0.conv1.weight" in shapes]
        last = "conv3" if f"{stages[0]}.0.conv3.weight" in shapes else "conv2"
        planes = [shapes[f"{s}.0.conv1.weight"][0] for s in stages]
        return {"bottleneck": last == "conv3", "blocks": [count(s)(shapes) for s in stages], "planes": planes,
                "stem": shapes[f"{stem}.weight"][0], "strides": [1] + [2] * (len(stages) - 1),
                "expansion": shapes[f"{stages[0]}.0.{last}.weight"][0] // planes[0]}
    return measure


def build_resnet(resnet: Mapping, **others):
    from ppssl.models.resnet import BasicBlock, Bottleneck, ResNet

    arguments = dict(resnet)
    return ResNet(Bottleneck if arguments.pop("bottleneck") else BasicBlock, **arguments, **others)


def build_byol(resnet: Mapping, **others):
    from ppssl.models.byol import BYOLModel

    return BYOLModel(lambda: build_resnet(resnet), **others)


def build_mlp(**sizes):
    from ppssl.models.byol import MLP

    return MLP(**sizes)


ENCODER = "online_network.encoder"
BYOL = {"resnet": resnet(*(f"{ENCODER}.{i}" for i in (0, *range(4, 9)))),
        "dim": axis("online_network.projetion.l2.bias", 0),
        "projection_hidden": axis("online_network.projetion.l1.bias", 0),
        "prediction_hidden": axis("predictor.predictor.l1.bias", 0)}
RESNET = {"resnet": resnet("conv1", *(f"layer{i}" for i in range(1, 6))), "num_classes": among("fc.bias")}
MLP = {"in_dim": fan_in("l1.weight", "l1.bias"), "hidden_dim": axis("l1.bias", 0), "out_dim": axis("l2.bias", 0)}

FAMILIES = (
    Family("mae", "pretrain", "MAE pretraining network", VIT | DECODER, like="iBOT and TEC (encoder)",
           parts={"final norm": ("norm.",), "decoder": ("mask_token", "decoder_")}),
    Family("tec", "pretrain", "TEC pretraining network", VIT | TEC_DECODERS | MLP_TOKEN,
           free=(*FREE, *MLP_TOKEN, "pred_att")),
    Family("mae", "classifier", "ViT classifier", VIT | CLASSIFIER, CLASSIFIER_PARTS, FREE_CLASSIFIER, like="TEC"),
    Family("tec", "classifier", "TEC classifier", VIT | CLASSIFIER | MLP_TOKEN, CLASSIFIER_PARTS,
           (*FREE_CLASSIFIER, *MLP_TOKEN)),
    Family("convmae", "pretrain", "ConvMAE pretraining network", CONVVIT | CONV_DECODER, CONV_PARTS,
           like="FastConvMAE"),
    Family("fastconvmae", "pretrain", "FastConvMAE pretraining network", CONVVIT | CONV_DECODER, CONV_PARTS,
           like="ConvMAE"),
    Family("convmae", "classifier", "ConvViT classifier", CONVVIT | CLASSIFIER, CLASSIFIER_PARTS, FREE_CLASSIFIER,
           like="FastConvMAE"),
    Family("bootmae", "pretrain", "BootMAE pretraining network", BOOT | BOOT_DECODER, BOOT_PARTS),
    Family("bootmae", "classifier", "BootMAE classifier", BOOT | CLASSIFIER, CLASSIFIER_PARTS,
           (*FREE_CLASSIFIER, "depth")),
    Family("byol", "pretrain", "BYOL pretraining network", BYOL, build=build_byol,
           free=("dim", "projection_hidden", "prediction_hidden")),
    Family("byol", "classifier", "ResNet", RESNET, {"head": ("fc.",)}, ("num_classes",), build=build_resnet),
    Family("byol", "head", "BYOL projector or predictor", MLP, build=build_mlp),
)
SAME_ENCODER = {"fastconvmae": "convmae"}                 # {family without classifiers of its own: whose have its encoder}


def classifier_family(family: Family) -> Family:
    """The family of the classifiers with this one's encoder."""
    name = SAME_ENCODER.get(family.name, family.name)
    return next(f for f in FAMILIES if (f.name, f.task) == (name, "classifier"))
