"""Small image folders made on the spot."""
import cv2
import numpy as np


def image_folder(root, classes: int = 2, per_class: int = 8, side: int = 20, splits=("train", "val")):
    """root/split/class/number.png of random colours. Returns root."""
    rng = np.random.default_rng(0)
    for split in splits:
        for c in range(classes):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    return root
