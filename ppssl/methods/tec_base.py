"""Which base model TEC learns from: the named ones, where their files are, and reading any of them."""
import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paddle import nn

from convert.formats import load
from convert.layout import relayout, transposed_keys
from convert.weights import read_weights
from ppssl.engine.weights import LoadReport, assign
from ppssl.errors import BadRequest
from ppssl.methods.classify import fit_position_table
from ppssl.models.tec_base import BaseModel

IBOT_PREFIX = "module.backbone."                          # of the student in an iBOT training checkpoint
DROPPED = ("mask_token", "masked_embed", "decoder_", "head.", "fc_norm.")
UNUSED = ("norm.",)                                       # no target passes through the last norm


@dataclass(frozen=True)
class Named:
    """A base model of the paper. file: its official name; source: where its authors publish it."""
    file: str
    source: str
    embed_dim: int
    depth: int


MAE_SITE = "its authors link it at https://github.com/facebookresearch/mae (README, fine-tuning section)"
MAE_300 = ("MAE's authors publish none after 300 epochs: pretrain it (--model mae_vit_base_patch16 --epochs 300), "
           "or see https://github.com/sail-sg/TEC")
IBOT_SITE = "its authors link it at https://github.com/bytedance/ibot (ViT-B/16 teacher backbone; give it this name)"
NAMED = {
    "mae1kbase": Named("mae_pretrain_vit_base.pth", MAE_SITE, 768, 12),
    "mae1klarge": Named("mae_pretrain_vit_large.pth", MAE_SITE, 1024, 24),
    "mae1k300ep": Named("mae_pretrain_vit_base_300ep.pth", MAE_300, 768, 12),
    "ibot1kbase": Named("ibot-vit-base-teacher.pth", IBOT_SITE, 768, 12),
}


def checkpoint_folder(given: str) -> Path:
    """Where files of named base models are: --checkpoint_dir, else $PPSSL_CHECKPOINTS, else ./checkpoints."""
    return Path(given or os.environ.get("PPSSL_CHECKPOINTS") or "checkpoints")


def build_base(model, name: str, ckpt: str, folder: Path, dry_run: bool) -> BaseModel:
    """The frozen base model for the new model `model`: the ViT in the file `ckpt`, else `name` from a file in `folder`.

    A dry run says that the file is missing and goes on with random weights. Raises BadRequest: no base model was named
    or it is unknown, its file is missing, holds no ViT, or is of another width, depth or patch size. Raises Refused.
    """
    named = find_named(name, model.cls_token.shape[-1])
    if not (named or ckpt):
        raise BadRequest(f"TEC needs a base model: --basemodel {', '.join(NAMED)}, or any ViT by --basemodel_ckpt FILE")
    path = Path(ckpt or folder / named.file)
    if path.exists():
        base = twin(model, named.depth if named else file_depth(path))
        print("\n".join(load_base(base, path)), flush=True)
        return base
    missing = f"no base model {path}" + ("" if ckpt else f": {named.source}; put it into {path.parent}/")
    if not dry_run:
        raise BadRequest(missing)
    print(f"note: {missing}")
    return twin(model, named.depth if named else len(model.blocks))


def find_named(name: str, width: int) -> Named | None:
    """The base model of that name, None for no name. Raises BadRequest: it is unknown, or not of that width."""
    if not name:
        return None
    if name not in NAMED:
        near = difflib.get_close_matches(name, NAMED, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(NAMED)}."
        raise BadRequest(f"unknown base model {name}: {hint} Any other ViT goes by --basemodel_ckpt FILE")
    if NAMED[name].embed_dim != width:
        fits = [f"--basemodel {n}" for n, other in NAMED.items() if other.embed_dim == width]
        raise BadRequest(f"{name} is {NAMED[name].embed_dim} wide, the new model {width}: use "
                         + " or ".join([*fits, "--basemodel_ckpt FILE alone"]))
    return NAMED[name]


def twin(model, depth: int) -> BaseModel:
    """A base model of the new model's sizes with `depth` blocks; its heads too, which no file tells."""
    embed = model.patch_embed
    return BaseModel(img_size=embed.img_size, patch_size=embed.patch_size, embed_dim=model.cls_token.shape[-1],
                     depth=depth, num_heads=model.blocks[0].attn.num_heads)


def file_depth(path: Path) -> int:
    """Number of transformer blocks in a file. Raises BadRequest where there are none."""
    depth = len({key.split(".")[1] for key in read_base(path, nn.Layer()) if key.startswith("blocks.")})
    if not depth:
        raise BadRequest(f"{path} holds no ViT: give an encoder of MAE or iBOT, or see python -m convert inspect")
    return depth


def read_base(path: Path, base) -> dict[str, np.ndarray]:
    """A file's weights in the layout of `base`: from 'model', 'state_dict' or 'student', the first there is, else all.

    Of an iBOT training checkpoint that is the student, its wrapper prefix and its projection head left off. Source:
    sail-sg/TEC `models/pretrained_basemodels.py`.
    """
    loaded = load(path)
    tree = loaded.tree if isinstance(loaded.tree, dict) else {}
    if "student" not in tree or {"model", "state_dict"} & set(tree):
        return read_weights(path, base, sections=("model", "state_dict"))
    state = {k.removeprefix(IBOT_PREFIX): v for k, v in tree["student"].items() if k.startswith(IBOT_PREFIX)}
    return relayout(state, transposed_keys(base)) if loaded.format.startswith("torch") else state


def load_base(base: BaseModel, path: Path) -> list[str]:
    """Put a file's weights into `base`; returns what to tell the user.

    Left off as in the official code: decoders, heads, mask tokens. The position table is resized where the grids
    differ. Raises BadRequest for anything else that does not fit.
    """
    tensors = read_base(path, base)
    resized = fit_position_table(base, tensors)
    report = assign(base, {k: v for k, v in tensors.items() if not k.startswith(DROPPED)})
    refuse_misfit(base, tensors, report, path)
    said = [f"base model {path}: {len(report.loaded)} tensors loaded", *resized]
    dropped = sorted({k.split(".")[0] for k in tensors if k.startswith(DROPPED)})
    if dropped:
        said.append(f"  left off: {', '.join(dropped)}")
    if report.missing:
        said.append(f"  not in the file, and not used: {', '.join(report.missing)}")
    return said


def refuse_misfit(base: BaseModel, tensors: dict[str, np.ndarray], report: LoadReport, path: Path) -> None:
    """BadRequest where a tensor has another shape, is missing, or is unknown and not one that is left off."""
    missing, unfit = [k for k in report.missing if not k.startswith(UNUSED)], f"{path} does not fit as base model: "
    if report.mismatched:
        key = report.mismatched[0]
        raise BadRequest(f"{unfit}its {key} is {list(tensors[key].shape)}, not {base.state_dict()[key].shape} as this "
                         "--model asks for: base and new model must be equally wide, with equal patches")
    if missing or report.unexpected:
        folded = "cls_token_mlp.fc1.weight" not in tensors
        raise BadRequest(f"{unfit}missing {missing[:2]}, unknown {list(report.unexpected[:2])}: give a plain ViT "
                         + ("of that depth" if folded else "(python -m convert fold-tec makes one of it)"))
