"""How cost grows with the work: step time and memory against batch and image size, the loader against workers, a checkpoint against
parameters; straight lines fitted, plotted as one PNG."""
import itertools
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from ppssl.bench import loader
from ppssl.bench.duel import Contender, contender, take_turns

MODEL = "mae_vit_tiny_patch4"
BATCHES, SIZES, WORKERS = (8, 16, 32, 64, 128), (16, 24, 32, 48, 64), (0, 1, 2)
PICTURES, EPOCH = 256, 4096                               # files to read, and how many times altogether in a pass of the loader
MODELS = ("mae_vit_tiny_patch4", "mae_vit_base_patch16", "mae_vit_large_patch16")


def run(repeats: int, output: str) -> list[dict]:
    """Measure every series, draw them into `output`."""
    series = [steps(f"of {MODEL}, against batch size", {b: (MODEL, b) for b in BATCHES}, repeats),
              steps(f"of {MODEL}, against patches of an image", {(s // 4) ** 2: (MODEL, 32, s) for s in SIZES}, repeats),
              models(repeats), *checkpoints(repeats), loaders(repeats)]
    draw(series, output)
    return series


def line(case: str, unit: str, xs: list[float], ys: list[float], **facts) -> dict:
    """A series with its least-squares line y = start + slope * x and the share of variance that this explains."""
    slope, start = np.polyfit(xs, ys, 1)
    rest = np.var(np.array(ys) - (start + slope * np.array(xs)))
    return {"case": case, "unit": unit, "x": xs, "y": [round(y, 3) for y in ys], "start": round(float(start), 4),
            "slope": float(f"{slope:.4g}"), "r2": round(1 - float(rest / np.var(ys)), 3)} | facts


def rounds(side: Contender, repeats: int) -> float:
    """Milliseconds of a round, the median."""
    take_turns([side], repeats)
    return 1000 * statistics.median(side.times)


def steps(what: str, shapes: dict[int, tuple], repeats: int) -> dict:
    """shapes: {where on the axis: model, batch size and perhaps image size}."""
    times, memory = [], []
    for shape in shapes.values():
        with contender(["-m", "ppssl.bench.step", "ours", *map(str, shape)]) as side:
            times.append(rounds(side, repeats))
            memory.append(round(side.peak_mib))
    return line(f"ms of a step {what}", "ms", list(shapes), times, memory_mib=memory)


def models(repeats: int) -> dict:
    times, memory, millions = [], [], []
    for model in MODELS:
        with contender(["-m", "ppssl.bench.step", "ours", model, "1"]) as side:
            times.append(rounds(side, repeats))
            memory.append(round(side.peak_mib))
            millions.append(side.facts["parameters"] / 1e6)
    return line("ms of a step with one image, against million parameters", "ms", millions, times, memory_mib=memory)


def checkpoints(repeats: int) -> list[dict]:
    sizes, times, millions = [], [], []
    for model in MODELS:
        with contender(["-m", "ppssl.bench.growth", model]) as side:
            times.append(rounds(side, repeats) / 1000)
            millions.append(side.facts["parameters"] / 1e6)
            sizes.append(side.result / 2 ** 20)
    return [line("seconds to save a checkpoint, against million parameters", "s", millions, times),
            line("MiB of a checkpoint, against million parameters", "MiB", millions, sizes)]


def loaders(repeats: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "train" / "class"
        loader.make_pictures(pictures, PICTURES)
        for copy, picture in itertools.product(range(1, EPOCH // PICTURES), list(pictures.iterdir())):
            os.link(picture, pictures / f"{copy}-{picture.name}")                    # Paddle's workers sleep 0.5 s between epochs
        rates = []
        for workers in WORKERS:
            with contender(["-m", "ppssl.bench.loader", folder, str(workers)]) as side:
                rates.append(1000 * EPOCH / rounds(side, repeats))
    return line("images/s of the loader, against workers (0: in the process itself)", "images/s", list(WORKERS), rates)


def draw(series: list[dict], output: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(series), 3.6), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(series), squeeze=False)[0], series):
        axes.plot(one["x"], one["y"], "o")
        axes.plot(one["x"], [one["start"] + one["slope"] * x for x in one["x"]], "-", alpha=0.5)
        axes.set_title(one["case"].replace(", against ", "\nagainst "), fontsize="small")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=110)


def serve_saves(model: str) -> None:
    """Save a whole training state whenever asked; the result is its size in bytes."""
    from convert.reference.stopwatch import serve
    from ppssl.bench.step import ready, stepper
    from ppssl.engine import checkpoint
    from ppssl.engine.loop import Progress

    method, batch = ready(model, 1)
    optimizer = method.build_optimizer()
    stepper(method, batch, optimizer)()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"

        def save() -> int:
            checkpoint.save(path, method, optimizer, Progress(), None, 1, 1000)
            return path.stat().st_size
        serve(save, parameters=sum(p.size for p in method.model.parameters()))


if __name__ == "__main__":
    import sys

    serve_saves(sys.argv[1])
