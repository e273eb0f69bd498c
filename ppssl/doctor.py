"""`python -m ppssl.doctor [--data_path DATA]`: is everything here that a run needs? Each finding with its fix."""
import argparse
import importlib.metadata
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paddle

from ppssl.data.images import BadImage, ImageFolder, decode

IMAGENET = {"train": (1000, 1_281_167), "val": (1000, 50_000)}
PACKAGES = ("numpy", "opencv-python", "pillow", "pyyaml", "numba", "simplejpeg", "safetensors", "ml_dtypes", "visualdl", "torch")
SHARED_MEMORY_MB = 1024
SAMPLES = 32                                              # images decoded per split


@dataclass(frozen=True)
class Finding:
    """One line of the report. ok False: something is wrong, and `text` says the fix."""
    ok: bool
    text: str


def check_paddle() -> Iterator[Finding]:
    """The build and what it can compute with."""
    gpu = paddle.device.is_compiled_with_cuda()
    yield Finding(True, f"paddle {paddle.__version__}, built for {'CUDA ' + str(paddle.version.cuda()) if gpu else 'CPU'}")
    if gpu:
        count = paddle.device.cuda.device_count()
        yield Finding(count > 0, f"{count} GPUs" if count else "built for CUDA but no GPU is visible: check the driver and CUDA_VISIBLE_DEVICES")
    start = time.perf_counter()
    product = paddle.matmul(paddle.ones([256, 256]), paddle.ones([256, 256]))[0, 0].item()
    yield Finding(product == 256.0, f"matrix product on {paddle.get_device()} in {1e3 * (time.perf_counter() - start):.1f} ms")


def check_packages() -> Iterator[Finding]:
    """What else is imported, and what is slower or missing without it."""
    for name in PACKAGES:
        try:
            yield Finding(True, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            need = {"simplejpeg": "JPEG decoding is slower", "torch": "needed to verify conversions only", "visualdl": "no curves",
                    "numba": "images cannot be resized"}.get(name, "needed")
            yield Finding(name in ("simplejpeg", "torch"), f"{name} is not installed ({need}): pip install {name}")


def check_collectives() -> Iterator[Finding]:
    """Under the launcher: whether the ranks reach each other."""
    from ppssl import dist

    dist.start(None)
    if dist.world() == 1:
        yield Finding(True, "one rank; to check several: PYTHONPATH=. python -m paddle.distributed.launch --nproc_per_node 2 ppssl/doctor.py")
        return
    total = dist.sum_over_ranks(paddle.ones([1])).item()
    yield Finding(total == dist.world(), f"rank {dist.rank()}: {dist.world()} ranks found each other")


def check_shared_memory() -> Iterator[Finding]:
    try:
        free = shutil.disk_usage("/dev/shm").free >> 20
    except OSError:
        yield Finding(False, "no /dev/shm: batches go through pipes, which is slower")
        return
    fix = "" if free >= SHARED_MEMORY_MB else ": enlarge it (docker: --shm-size 8g) or use fewer --num_workers"
    yield Finding(not fix, f"/dev/shm has {free} MiB free{fix}")


def check_writing(folder: str) -> Iterator[Finding]:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
        yield Finding(True, f"{folder} can be written, {shutil.disk_usage(folder).free >> 30} GiB free")
    except OSError as error:
        yield Finding(False, f"{folder} cannot be written ({os.strerror(error.errno)}): choose another --output_dir")


def check_data(data_path: str) -> Iterator[Finding]:
    """Layout, counts and a sample of decoded images of train/ and val/."""
    found = {}
    for split in ("train", "val"):
        try:
            found[split] = ImageFolder(Path(data_path) / split)
        except (OSError, ValueError) as error:
            yield Finding(False, f"{split}: {error}")
            continue
        yield from _check_split(split, found[split])
    if len(found) == 2 and found["train"].classes != found["val"].classes:
        odd = sorted(set(found["train"].classes) ^ set(found["val"].classes))
        yield Finding(False, f"train and val have other classes ({odd[:3]}): labels would be mixed up")


def _check_split(split: str, data: ImageFolder) -> Iterator[Finding]:
    classes, images = len(data.classes), len(data)
    hint = ""
    if classes == IMAGENET[split][0] and images != IMAGENET[split][1]:
        hint = f" (ImageNet-1k has {IMAGENET[split][1]:,}: some are missing or too many)"
    yield Finding(not hint, f"{split}: {images:,} images in {classes} classes{hint}")
    bad, start = [], time.perf_counter()
    chosen = random.Random(0).sample(range(images), min(SAMPLES, images))
    for i in chosen:
        try:
            decode(data.path(i))
        except BadImage as error:
            bad.append(str(error))
    cost = 1e3 * (time.perf_counter() - start) / len(chosen)
    yield Finding(not bad, f"{split}: {len(chosen) - len(bad)} of {len(chosen)} sampled images decode, {cost:.1f} ms each"
                  + (f"; unreadable: {bad[0]}" if bad else ""))


def main(argv: list[str] | None = None) -> int:
    """Print every finding; exit code 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m ppssl.doctor", description=__doc__)
    parser.add_argument("--data_path", help="data set folder to check")
    parser.add_argument("--output_dir", default="./output_dir", help="where runs will be written (default: %(default)s)")
    args = parser.parse_args(argv)
    checks = [check_paddle(), check_packages(), check_collectives(), check_shared_memory(), check_writing(args.output_dir)]
    checks += [check_data(args.data_path)] if args.data_path else []
    wrong = 0
    for finding in (f for check in checks for f in check):
        wrong += not finding.ok
        print(f"[{'ok' if finding.ok else 'WRONG'}] {finding.text}", flush=True)
    print(f"{wrong} problems" if wrong else "everything is in order")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
