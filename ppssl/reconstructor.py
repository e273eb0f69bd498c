"""From any pretraining file to a method that can show what it reconstructs."""
import dataclasses
from pathlib import Path

from convert.contents import Contents, contents
from convert.conversion import paddle_weights
from convert.formats import load
from convert.recognise import Network
from convert.training import config_of, official_options
from ppssl import methods
from ppssl.engine.rebuild import latest, rebuild
from ppssl.engine.weights import assign_all
from ppssl.errors import BadRequest
from ppssl.methods import bootmae
from ppssl.methods.base import Method

WITH_DECODER = {"mae_vit_base_patch16": "mae_visualize_vit_base.pth", "mae_vit_large_patch16": "mae_visualize_vit_large.pth",
                "mae_vit_huge_patch14": "mae_visualize_vit_huge.pth"}
MASK_SIZES = ("mask_num", "num_mask_patches", "min_mask_patches_per_block", "max_mask_patches_per_block")
OFFICIAL_PATCHES = 196                                    # which BootMAE's defaults are meant for


def reconstructor(path: str | Path) -> tuple[Method, bool]:
    """The method of a run folder, a checkpoint or the authors' file, with its weights, and whether the file tells if the
    patches that it predicts are normalised.

    Raises Refused where it is no readable file of a known network, BadRequest where it predicts no pixels.
    """
    path = latest(path)
    loaded = load(path)
    if "config" in loaded.metadata:
        return rebuild(path), True
    found = contents(loaded, path)
    network = found.main.network
    config = config_of(options_of(found), network)
    kind = methods.get(config.task, config.method)
    if not kind.reconstructs():
        raise BadRequest(f"{path} is a {network.title}, which predicts no pixels: give a pretraining file of MAE, ConvMAE, "
                         "FastConvMAE or BootMAE")
    refuse_encoder(network, path)
    method = kind(config, network.build())
    assign_all(method.model, paddle_weights(found.main))
    return method, kind is bootmae.BootMAE or "norm_pix_loss" in official_options(found)


def options_of(found: Contents) -> dict:
    """The run's options that the file tells; for BootMAE also what it has to be told."""
    network, told = found.main.network, official_options(found)
    if (network.family.name, network.family.task) != ("bootmae", "pretrain"):
        return told
    share = (network.shapes["pos_embed"][1] - 1) / OFFICIAL_PATCHES
    defaults = {f.name: f.default for f in dataclasses.fields(bootmae.Options) if f.name in MASK_SIZES}
    masks = {name: max(1, round(share * value)) for name, value in defaults.items()}
    return {"feature_weight": 1.0, "model_ema": True} | masks | told


def refuse_encoder(network: Network, path: Path) -> None:
    """BadRequest where the decoder is missing, with the name of the file that has it."""
    if not {"decoder", "decoders", "final norm"} & set(network.absent):
        return
    published = WITH_DECODER.get(network.entry)
    fix = (f"take {published}, which MAE's authors publish for this" if published
           else "take the checkpoint of a pretraining run, which has the decoder")
    raise BadRequest(f"{path} holds the encoder alone and cannot reconstruct: {fix}")
