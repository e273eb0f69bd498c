"""How a network is run on the same input in both frameworks: one small entry a family."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from torch import Tensor

from convert.recognise import Network
from convert.reference import bootmae, byol, convvit, mae, tec, vit
from convert.reference.tape import Tape
from ppssl.data.transforms import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD
from ppssl.models.bootmae import hidden_mask

Arrays = dict[str, np.ndarray]
MASK_RATIO = 0.75
TOP = 3                                                   # patches whose attention TEC's second decoder predicts
FREE_SIZE = (64, 64)                                      # image size of networks that take any


@dataclass(frozen=True)
class Trial:
    """How one kind of network is run.

    draw: what goes in beside the images, from (patches, batch, generator). official(tape, inputs, facts): the PyTorch
    results; ours(model, inputs): Paddle's, under the same names. facts(model): what no weights tell, such as numbers of
    heads. image(model, prediction): the predicted images, where there are any. mean, std: how images are normalised.
    """
    draw: Callable[[int, int, np.random.Generator], Arrays]
    official: Callable[[Tape, dict[str, Tensor], dict], dict[str, Tensor]]
    ours: Callable[[Any, dict], dict]
    facts: Callable[[Any], dict]
    image: Callable[[Any, np.ndarray], Any] | None = None
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD


def nothing(patches: int, batch: int, rng: np.random.Generator) -> Arrays:
    return {}


def noise(patches: int, batch: int, rng: np.random.Generator) -> Arrays:
    return {"noise": rng.random((batch, patches)).astype(np.float32)}


def order(patches: int, batch: int, rng: np.random.Generator) -> Arrays:
    return {"order": np.stack([rng.permutation(patches) for _ in range(batch)])}


def noise_and_top(patches: int, batch: int, rng: np.random.Generator) -> Arrays:
    top = np.stack([rng.permutation(patches)[:TOP] for _ in range(batch)])
    return noise(patches, batch, rng) | {"top": top}


def blocks_of(model):
    return model.blocks3 if hasattr(model, "blocks3") else model.blocks


def encoder_facts(model) -> dict:
    return {"heads": blocks_of(model)[0].attn.num_heads}


def decoder_facts(model) -> dict:
    return encoder_facts(model) | {"decoder_heads": model.decoder_blocks[0].attn.num_heads}


def stem_facts(model) -> dict:
    """Of a ResNet or of BYOL, whose online encoder begins with the stem's convolution."""
    stem = model.conv1 if hasattr(model, "conv1") else model.online_network.encoder[0]
    return {"stem_stride": stem._stride[0]}


def first_token_facts(model) -> dict:
    """EasyCV's classifier leaves the first patch out of its mean."""
    return encoder_facts(model) | {"first": model.first}


def reconstruct(forward: Callable) -> Trial:
    """MAE and its convolutional descendants."""
    def official(tape: Tape, given: dict, facts: dict) -> dict:
        out = forward(tape, given["images"], given["noise"], mask_ratio=MASK_RATIO, **facts)
        return {"mask": out["mask"], "prediction": out["pred"], "loss": out["loss"]}

    def ours(model, given: dict) -> dict:
        loss, pred, mask = model(given["images"], given["noise"], MASK_RATIO)
        return {"mask": mask, "prediction": pred, "loss": loss}
    return Trial(noise, official, ours, decoder_facts,
                 lambda model, prediction: model.to_image(paddle.to_tensor(prediction)))


def classify(forward: Callable, facts: Callable[[Any], dict]) -> Trial:
    def official(tape: Tape, given: dict, facts: dict) -> dict:
        return forward(tape, given["images"], **facts)

    def ours(model, given: dict) -> dict:
        features = model.forward_features(given["images"])
        return {"features": features, "logits": model.head(features)}
    return Trial(nothing, official, ours, facts)


def bootmae_trial() -> Trial:
    def official(tape: Tape, given: dict, facts: dict) -> dict:
        masked = int(MASK_RATIO * given["order"].shape[1])
        out = bootmae.forward(tape, given["images"], given["order"], masked=masked, **facts)
        return {"mask": out["mask"], "prediction": out["pixels"], "features": out["features"]}

    def ours(model, given: dict) -> dict:
        masked = int(MASK_RATIO * given["order"].shape[1])
        pixels, features = model(given["images"], given["order"], masked)
        return {"mask": hidden_mask(given["order"], masked)[0], "prediction": pixels, "features": features}
    return Trial(order, official, ours, lambda model: encoder_facts(model) | {"memory_blocks": list(model.fea_list)},
                 lambda model, prediction: paddle.to_tensor(prediction), INCEPTION_MEAN, INCEPTION_STD)


def tec_trial() -> Trial:
    def official(tape: Tape, given: dict, facts: dict) -> dict:
        top = given["top"].unsqueeze(1)
        out = tec.forward(tape, given["images"], given["noise"], top, mask_ratio=MASK_RATIO, **facts)
        attention = {"attention": out["attention_pred"][:, 0]} if "attention_pred" in out else {}
        return {"features": out["feature_pred"]} | attention

    def ours(model, given: dict) -> dict:
        levels, _, ids_restore = model.forward_encoder(given["images"], given["noise"], MASK_RATIO)
        latent, shared = model.encoder_adaptor(levels), (model.decoder_pos_embed, model.decoder_blocks)
        out = {"features": model.forward_fea_decoder(latent, ids_restore, *shared)}
        if model.forward_att_decoder is not None:
            out["attention"] = model.forward_att_decoder(latent, ids_restore, given["top"], *shared)
        return out
    return Trial(noise_and_top, official, ours, decoder_facts)


def byol_trial() -> Trial:
    def official(tape: Tape, given: dict, facts: dict) -> dict:
        return byol.forward(tape, given["images"], **facts)

    def ours(model, given: dict) -> dict:
        features = model.online_network.features(given["images"])
        projection = model.online_network.projetion(features)
        return {"features": features, "projection": projection, "q": model.predictor(projection),
                "target_z": model.target_network(given["images"])}
    return Trial(nothing, official, ours, stem_facts)


def mlp_trial() -> Trial:
    return Trial(lambda patches, batch, rng: {"x": rng.standard_normal((batch, patches)).astype(np.float32)},
                 lambda tape, given, facts: {"output": byol.mlp(tape, "", given["x"])},
                 lambda model, given: {"output": model(given["x"])}, lambda model: {})


TRIALS = {
    ("mae", "pretrain"): reconstruct(mae.forward),
    ("convmae", "pretrain"): reconstruct(convvit.convmae),
    ("fastconvmae", "pretrain"): reconstruct(convvit.fastconvmae),
    ("bootmae", "pretrain"): bootmae_trial(),
    ("tec", "pretrain"): tec_trial(),
    ("byol", "pretrain"): byol_trial(),
    ("mae", "classifier"): classify(vit.forward, encoder_facts),
    ("tec", "classifier"): classify(vit.forward, encoder_facts),
    ("convmae", "classifier"): classify(convvit.classifier, first_token_facts),
    ("bootmae", "classifier"): classify(bootmae.classifier, encoder_facts),
    ("byol", "classifier"): classify(byol.classify, stem_facts),
    ("byol", "head"): mlp_trial(),
}


def trial_of(network: Network) -> Trial:
    return TRIALS[network.family.name, network.family.task]


def inputs(network: Network, model, images: np.ndarray | None, seed: int = 0) -> Arrays:
    """What both frameworks are given: images (float32 [B, C, H, W], normalised; drawn here if None), random draws."""
    rng = np.random.default_rng(seed)
    if network.family.task == "head":
        return trial_of(network).draw(network.sizes["in_dim"], 4, rng)
    size = network.sizes.get("img_size", FREE_SIZE)
    if images is None:
        images = rng.standard_normal((2, network.sizes.get("in_chans", 3), *size)).astype(np.float32)
    return {"images": images} | trial_of(network).draw(getattr(model, "num_patches", 0), len(images), rng)


def tensors(arrays: Arrays) -> dict:
    return {name: paddle.to_tensor(value) for name, value in arrays.items()}
