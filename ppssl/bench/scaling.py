"""What a node of eight A100 and four of them would do with each recipe: a model from counted FLOPs and bytes and the loader's measured
time per image. Nothing of it was run on a GPU; the assumptions are the constants below."""
import statistics
import tempfile
import time
from pathlib import Path

from ppssl.bench import loader
from ppssl.bench.step import METHODS, RECIPES, build

PEAK, UTILISATION = 312e12, 0.4                           # FLOP/s of an A100 in bf16; the share that well-tuned ViT training reaches
GPUS = 8                                                  # of a node
INSIDE, BETWEEN = 200e9, 25e9                             # bytes/s of an all-reduce over NVLink, and of a node's network (200 Gbit/s)
OVERLAP = 0.5                                             # share of the all-reduce that hides behind the backward pass
CORES = 64                                                # of a node, for the loader
BATCH = {"byol_resnet50": 128, "vit_base_patch16": 128, "convvit_base_patch16": 32}       # images a GPU and step, else 128


def run() -> list[dict]:
    """One row a method."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder)
        loader.make_pictures(pictures / "class", 32)
        return [estimate(model, sorted(pictures.rglob("*.jpg"))) for model in METHODS]


def estimate(model: str, pictures: list[Path]) -> dict:
    from ppssl.engine.dry_run import cost_of_image

    method, _ = build(model, 2)
    flop, batch = cost_of_image(method)[1], BATCH.get(model, 128)
    gradients = 4 * sum(p.size for p in method.network.parameters() if p.trainable)
    compute = batch * flop / (PEAK * UTILISATION)
    seconds = sample_seconds(method, pictures)
    one, four = (GPUS * nodes * batch / (compute + (1 - OVERLAP) * all_reduce(gradients, nodes)) for nodes in (1, 4))
    return {"case": f"scaling {model}", "recipe": RECIPES[model], "gflop_per_image": round(flop / 1e9, 1), "gradient_mib": round(gradients / 2 ** 20),
            "compute_ms": round(1000 * compute, 1), "all_reduce_ms_1_node": round(1000 * all_reduce(gradients, 1), 1),
            "all_reduce_ms_4_nodes": round(1000 * all_reduce(gradients, 4), 1), "images_per_s_1_node": round(one),
            "images_per_s_4_nodes": round(four), "sample_ms": round(1000 * seconds, 2), "loader_cores_per_gpu": round(one / GPUS * seconds, 1),
            "binds": "loader" if one * seconds > CORES else "compute"}


def all_reduce(size: float, nodes: int) -> float:
    """Seconds of a ring over the GPUs of a node, and over the nodes' network where there are several."""
    inside = 2 * (GPUS - 1) / GPUS * size / INSIDE
    return inside + (2 * (nodes - 1) / nodes * size / BETWEEN if nodes > 1 else 0.0)


def sample_seconds(method, pictures: list[Path]) -> float:
    """Processor time of the loader's work on one image, the median: decode, and everything the method does with it."""
    import cv2
    import numpy as np

    from ppssl.data.images import decode
    from ppssl.data.resize import warm

    cv2.setNumThreads(1)
    warm()
    times = []
    for number, picture in enumerate(pictures + pictures):
        start = time.process_time()
        method.sample(decode(picture), 0, np.random.default_rng(number))
        times.append(time.process_time() - start)
    return statistics.median(times)
