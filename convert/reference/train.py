"""One training step of each method in plain PyTorch, eager and float32, as the authors' loops take it.

`python -m convert.reference.train FOLDER THREADS` is the peer of `python -m ppssl.bench step`, which leaves weights and facts in FOLDER.
It imports nothing of ppssl, so that PyTorch runs in the process it would have without it.
"""
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convert.reference import bootmae, byol, convvit, mae, tec, vit
from convert.reference.stopwatch import serve
from convert.reference.tape import Tape

State = dict[str, Tensor]


class Forward(Tape):
    """A tape that keeps no stages: nothing outlives the step but what the backward pass needs."""

    def keep(self, name: str, x: Tensor) -> Tensor:
        return x


def reconstruction(forward: Callable) -> Callable:
    """MAE, ConvMAE, FastConvMAE."""
    def loss(states: dict[str, State], given: State, facts: dict) -> Tensor:
        return forward(Forward(states["model"]), given["images"], given["noise"], **facts)["loss"]
    return loss


def bootmae_loss(states: dict[str, State], given: State, facts: dict) -> Tensor:
    """Pixels and the teacher's features, weighted by patch."""
    facts = dict(facts)
    share, ramp = facts.pop("share"), facts.pop("feature_weight")
    with torch.no_grad():
        target = bootmae.teacher_features(Forward(states["ema"]), given["images"], heads=facts["heads"])
        patches = mae.patchify(given["images"], *states["model"]["patch_embed.proj.weight"].shape[2:])
        patches = patches.unflatten(-1, (-1, 3)).transpose(-1, -2)                              # [B, L, 3, P]
        pixels = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    out = bootmae.forward(Forward(states["model"]), given["images"], given["order"], **facts)
    pred = mae.patchify(out["pixels"], *states["model"]["patch_embed.proj.weight"].shape[2:]).unflatten(-1, (-1, 3))
    pixel_error = (pred.transpose(-1, -2) - pixels).square().flatten(2).mean(-1)
    features, target = (F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in (out["features"], target))
    feature_error = (features - target).square().mean(-1)
    return (given["weight"] * (pixel_error + ramp * feature_error)).mean() / share


def tec_loss(states: dict[str, State], given: State, facts: dict) -> Tensor:
    facts = dict(facts)
    base = {key: facts.pop(key) for key in ("last_layers", "top")} | {"heads": facts["heads"]}
    temperature = facts.pop("att_tau")
    with torch.no_grad():
        target = tec.base(Tape(states["base"]), given["images"], **base)
    out = tec.forward(Forward(states["model"]), given["images"], given["noise"], target["index"], **facts)
    return tec.losses(target, out, temperature)["loss"]


def byol_loss(states: dict[str, State], given: State, facts: dict) -> Tensor:
    """Both views as one batch, the target's in the other order; the mean of both directions."""
    tape, views = Forward(states["model"]), given["views"]
    online, target = (f"{net}_network" for net in ("online", "target"))
    modes = {"training": True}
    q = byol.encoder(tape, byol.numbered(f"{online}.encoder"), views, **modes, **facts)
    q = byol.mlp(tape, "predictor.predictor", byol.mlp(tape, f"{online}.projetion", q, **modes), **modes)
    with torch.no_grad():
        z = byol.encoder(tape, byol.numbered(f"{target}.encoder"), views.roll(len(views) // 2, 0), **modes, **facts)
        z = byol.mlp(tape, f"{target}.projetion", z, **modes)
    return 2 - 2 * (F.normalize(q, dim=-1) * F.normalize(z, dim=-1)).sum(-1).mean()


def classifier_loss(states: dict[str, State], given: State, facts: dict) -> Tensor:
    forward = convvit.classifier if "patch_embed4.weight" in states["model"] else vit.forward
    return F.cross_entropy(forward(Forward(states["model"]), given["images"], **facts)["logits"], given["labels"])


LOSSES = {"mae": reconstruction(mae.forward), "convmae": reconstruction(convvit.convmae),
          "fastconvmae": reconstruction(convvit.fastconvmae), "bootmae": bootmae_loss, "tec": tec_loss, "byol": byol_loss,
          "classifier": classifier_loss}


class LARS(torch.optim.Optimizer):
    """BYOL's: the learning rate is inside the momentum buffer."""

    def __init__(self, params, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-6, eta: float = 1e-3):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                weight, gradient = p.norm(), p.grad.norm()
                rate = group["lr"] * group["eta"] * weight / (gradient + group["weight_decay"] * weight)
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(rate * (p.grad + group["weight_decay"] * p))
                p.sub_(buffer)


def teacher_pairs(family: str, states: dict[str, State]) -> list[tuple[Tensor, Tensor]]:
    """(average, online) of a method with a moving average."""
    if family == "bootmae":
        return [(states["ema"][name], p) for name, p in states["model"].items()]
    model = states["model"] if family == "byol" else {}
    return [(t, model[f"online{name.removeprefix('target')}"]) for name, t in model.items()
            if name.startswith("target") and t.is_floating_point() and "running" not in name]


def follow(pairs: list[tuple[Tensor, Tensor]], decay: float) -> None:
    """The authors' update: tensor by tensor."""
    with torch.no_grad():
        for average, online in pairs:
            average.copy_(average * decay + online * (1 - decay))


def training_step(family: str, states: dict[str, State], given: State, facts: dict, trained: list[str]) -> Callable:
    """A function that takes one step and returns the loss it started from."""
    params = [states["model"][name].requires_grad_() for name in trained]
    optimizer = LARS(params) if family == "byol" else torch.optim.AdamW(params, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05)
    pairs = teacher_pairs(family, states)

    def step() -> float:
        loss = LOSSES[family](states, given, facts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        follow(pairs, 0.999)
        return loss.item()
    return step


def load(path: Path) -> dict[str, State]:
    """{section: {name: tensor}} of an .npz with keys 'section/name'."""
    sections: dict[str, State] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            section, name = key.split("/", 1)
            sections.setdefault(section, {})[name] = torch.from_numpy(arrays[key])
    return sections


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    facts, states = json.loads((folder / "facts.json").read_text()), load(folder / "weights.npz")
    step = training_step(facts["family"], states, states.pop("input"), facts["facts"], facts["trained"])
    serve(step, framework=f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
