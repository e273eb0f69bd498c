"""The pretraining pipeline of every MAE-like method (decode, random resized crop to 224, mirror) against torchvision's.

Our side (`python -m ppssl.bench.loader FOLDER WORKERS`) is the product's loader; the peer, `convert.reference.loader`, does with PIL
what torchvision's transforms do. Both read the same JPEGs and cut boxes of the same distribution.
"""
import sys
import tempfile
from pathlib import Path

import ppssl  # noqa: F401 - prepares the process before Paddle is imported
import cv2
import numpy as np

from ppssl.bench.duel import contender, row, take_turns

BATCH = 32


def run(images: int, workers: int, repeats: int) -> list[dict]:
    """Time whole passes. Images/s of one core where workers is 0 or 1."""
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder) / "train" / "class", images)
        arguments = [folder, str(workers)]
        with contender(["-m", "ppssl.bench.loader", *arguments]) as ours:
            with contender(["-m", "convert.reference.loader", *arguments], plain=True) as peer:
                take_turns([ours, peer], repeats, warmup=1)
                return [row(f"loader {images} JPEGs, {workers} workers", ours, peer, images // BATCH * BATCH, "images", workers=workers)]


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs of 500x375 pixels, 35 to 65 KB: smooth shapes under fine texture."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        smooth = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
        texture = rng.normal(0, 9, (375, 500, 1))
        cv2.imwrite(str(folder / f"{i:04}.jpg"), np.clip(smooth + texture, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])


def main() -> None:
    import paddle

    from convert.reference.stopwatch import serve
    from ppssl.data.images import ImageFolder
    from ppssl.data.loader import Loader, Samples
    from ppssl.data.resize import warm
    from ppssl.data.sampler import TrainSampler
    from ppssl.data.transforms import PretrainTransform

    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    paddle.set_device("cpu")
    cv2.setNumThreads(1)
    warm()
    data, transform = ImageFolder(folder / "train"), PretrainTransform(224)
    samples = Samples(data, lambda image, label, rng: {"image": transform(image, rng)}, seed=0)
    loader = Loader(samples, TrainSampler(len(data), BATCH), workers)
    serve(lambda: sum(1 for _ in loader.epoch(0)), framework="ppssl")


if __name__ == "__main__":
    main()
