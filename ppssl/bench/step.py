"""The training step of a method at its recipe's shape: the product's own loop over one batch that stays.

`python -m ppssl.bench.step prepare MODEL BATCH FOLDER` leaves the weights, inputs and facts that the PyTorch peer
(`convert.reference.train`) needs to compute the same step; `python -m ppssl.bench.step ours MODEL BATCH [SIZE]` is our side of the duel.
"""
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ppssl  # noqa: F401 - prepares the process before Paddle is imported
import numpy as np

from ppssl import dist
from ppssl.bench.duel import contender, row, take_turns
from ppssl.errors import BadRequest

RECIPES = {
    "mae_vit_tiny_patch4": "mae/demo_pretrain",
    "mae_vit_base_patch16": "mae/vit_base_patch16_pretrain",
    "mae_vit_large_patch16": "mae/vit_large_patch16_pretrain",
    "mae_vit_huge_patch14": "mae/vit_huge_patch14_pretrain",
    "convmae_convvit_base_patch16": "convmae/convvit_base_patch16_pretrain",
    "fastconvmae_convvit_base_patch16": "fastconvmae/convvit_base_patch16_pretrain",
    "bootmae_base": "bootmae/bootmae_base_pretrain",
    "tec_vit_base_patch16": "tec/vit_base_patch16_mae_800ep_pretrain",
    "byol_resnet50": "byol/resnet50_pretrain",
    "vit_base_patch16": "mae/vit_base_patch16_finetune",
    "convvit_base_patch16": "convmae/convvit_base_patch16_finetune",
}
METHODS = ["mae_vit_base_patch16", "convmae_convvit_base_patch16", "fastconvmae_convvit_base_patch16", "bootmae_base",
           "tec_vit_base_patch16", "byol_resnet50", "vit_base_patch16"]
PLAIN = {"pretrain": [], "finetune": ["--mixup", "0", "--cutmix", "0", "--reprob", "0", "--smoothing", "0", "--drop_path", "0",
                                      "--nb_classes", "1000"]}


def run(model: str, batch_size: int, threads: int, repeats: int, against_torch: bool) -> dict:
    """Time a model's step. Raises BadRequest for a model without a recipe here."""
    if model not in RECIPES:
        raise BadRequest(f"no recipe to time {model} with: choose from {', '.join(RECIPES)}")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        subprocess.run([sys.executable, "-m", "ppssl.bench.step", "prepare", model, str(batch_size), folder], check=True)
        facts = json.loads((Path(folder) / "facts.json").read_text())
        ours = stack.enter_context(contender(["-m", "ppssl.bench.step", "ours", model, str(batch_size)]))
        peer = stack.enter_context(contender(["-m", "convert.reference.train", folder, str(threads)], plain=True)) if against_torch else None
        take_turns([side for side in (ours, peer) if side], repeats)
        return report(model, batch_size, threads, facts, ours, peer)


def report(model: str, batch_size: int, threads: int, facts: dict, ours, peer) -> dict:
    """The duel's row with images, the losses of both, and the share of this machine's measured matrix-product peak."""
    found = row(f"step {model} batch {batch_size}", ours, peer, batch_size, "images", threads=threads,
                step_gflop=round(facts["step_gflop"], 1), peak_gflops=round(facts["peak_gflops"], 1))
    found["utilisation"] = round(facts["step_gflop"] / (found["ours_ms"] / 1000) / facts["peak_gflops"], 3)
    found["losses"] = [round(side.result, 5) for side in (ours, peer) if side]
    return found


def build(model: str, batch_size: int, input_size: int | None = None):
    """(method, one batch) of the model's recipe, the weights at random. input_size: instead of the recipe's."""
    import paddle

    from ppssl import methods
    from ppssl.config import parse
    from ppssl.data.loader import collate

    task = RECIPES[model].rsplit("_", 1)[1]
    config = parse(task, ["-c", RECIPES[model], "--batch_size", str(batch_size), "--accum_iter", "1", "--dry_run", *PLAIN[task],
                         *(["--input_size", str(input_size)] if input_size else [])])
    paddle.seed(0)
    method = methods.get(config.task, config.method)(config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *config.data.input_size, 3), dtype=np.uint8)
    samples = [method.sample(image, i % 10, rng) for i, image in enumerate(images)]
    return method, {k: paddle.to_tensor(v) for k, v in collate(samples).items()}


class Constant:
    """A loader whose every batch is the same."""

    def __init__(self, batch: dict):
        self.batch = batch

    def __len__(self) -> int:
        return 1_000_000

    def epoch(self, epoch: int, first: int):
        while True:
            yield dict(self.batch)


def peer_inputs(method, batch: dict) -> dict[str, np.ndarray]:
    """What the PyTorch step starts from: images normalised, orders drawn."""
    import paddle

    from ppssl.data.device import normalize
    from ppssl.methods.bootmae import patch_weights

    if "views" in batch:
        return {"views": paddle.concat([normalize(batch["views"][:, i], method.mean, method.std) for i in range(2)]).numpy()}
    given = {"images": method.images(batch).numpy()}
    if "blocks" in batch:
        order, o = method.order(batch), method.options
        weight = patch_weights(order, method.mask_num, method.model.patch_embed.grid, o.weight_mask)
        return given | {"order": order.numpy().astype(np.int64), "weight": weight.numpy()}
    return given | {{"label": "labels"}.get(k, k): batch[k].numpy() for k in ("noise", "label") if k in batch}


def peer_facts(method) -> dict:
    """Keyword arguments of the reference's forward pass and loss."""
    from convert import trials
    from ppssl.optim.schedules import feature_ramp

    family, o, model = method.name, method.options, method.model
    if method.task != "pretrain":
        return trials.encoder_facts(model) | ({"first": model.first} if hasattr(model, "first") else {})
    if family == "byol":
        return trials.stem_facts(model)
    if family == "bootmae":
        return trials.encoder_facts(model) | {
            "memory_blocks": list(model.fea_list), "masked": method.mask_num, "share": method.mask_num / model.num_patches,
            "feature_weight": feature_ramp(0, o.feature_weight, method.config.train.epochs)}
    facts = trials.decoder_facts(model) | {"mask_ratio": o.mask_ratio}
    if family == "tec":
        return facts | {"last_layers": o.last_layers, "top": o.topkatt, "att_tau": o.att_tau}
    return facts | {"norm_pix_loss": o.norm_pix_loss}


def prepare(model: str, batch_size: int, folder: Path) -> None:
    """Write the networks in PyTorch's layout (weights.npz), and what else is to know of the step (facts.json)."""
    from convert.layout import relayout, transposed_keys
    from ppssl.engine.dry_run import cost_of_image
    from ppssl.models import registry

    method, batch = build(model, batch_size)
    networks = method.layers() | ({"base": method.base} if hasattr(method, "base") else {})
    arrays = {f"input/{name}": value for name, value in peer_inputs(method, batch).items()}
    for section, network in networks.items():
        state = {k: v.numpy() for k, v in network.state_dict().items()}
        arrays |= {f"{section}/{k}": v for k, v in relayout(state, transposed_keys(network)).items()}
    np.savez(folder / "weights.npz", **arrays)
    family = registry.find(method.task, model).family if method.task == "pretrain" else "classifier"
    trained = [name for name, p in method.model.named_parameters() if p.trainable and not name.startswith("target")]
    facts = {"family": family, "facts": peer_facts(method), "trained": trained, "peak_gflops": matmul_gflops(),
             "step_gflop": cost_of_image(method)[1] * batch_size / 1e9}
    (folder / "facts.json").write_text(json.dumps(facts))


def matmul_gflops(side: int = 1536, rounds: int = 5) -> float:
    """The best measured rate of a square float32 matrix product."""
    import paddle

    a, best = paddle.ones([side, side]), 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        paddle.matmul(a, a).numpy()
        best = max(best, 2 * side ** 3 / (time.perf_counter() - start) / 1e9)
    return best


def ready(model: str, batch_size: int, input_size: int | None = None):
    """`build` in a process whose output is read: notes go to the error stream."""
    dist.start(None)
    with contextlib.redirect_stdout(sys.stderr):
        return build(model, batch_size, input_size)


def stepper(method, batch: dict, optimizer=None) -> Callable[[], float]:
    """What takes one step of the product's loop on the batch, and returns the loss it started from."""
    from ppssl.engine.loop import Plan, Progress, train

    steps = train(method, optimizer or method.build_optimizer(), Constant(batch), Plan(epochs=1), Progress())
    return lambda: float(next(steps).stats["loss"])


def serve_steps(model: str, batch_size: int, input_size: int | None = None) -> None:
    """Our side: a step whenever it is asked for."""
    from convert.reference.stopwatch import serve

    method, batch = ready(model, batch_size, input_size)
    serve(stepper(method, batch), framework="ppssl", parameters=sum(p.size for p in method.model.parameters()))


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        serve_steps(sys.argv[2], *map(int, sys.argv[3:]))
