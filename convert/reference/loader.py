"""ImageFolder, RandomResizedCrop(224, scale=(0.2, 1), bicubic), flip, ToTensor and Normalize as torchvision does them on PIL
pictures, in a torch DataLoader: the peer of `python -m ppssl.bench loader`."""
import math
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from convert.reference.stopwatch import serve

MEAN, STD = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SIZE, BATCH = 224, 32


class Pictures(Dataset):
    def __init__(self, folder: Path):
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with open(self.paths[index], "rb") as file:
            picture = Image.open(file).convert("RGB")
        picture = picture.crop(box(*picture.size)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)
        return (pixels - MEAN) / STD


def box(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random resized crop: up to ten tries for an area and an aspect that fit."""
    for _ in range(10):
        area, aspect = width * height * random.uniform(0.2, 1), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def main() -> None:
    torch.set_num_threads(1)
    workers = int(sys.argv[2])
    loader = DataLoader(Pictures(Path(sys.argv[1])), BATCH, shuffle=True, drop_last=True, num_workers=workers,
                        persistent_workers=workers > 0)
    serve(lambda: sum(1 for _ in loader), framework=f"PIL {Image.__version__} in torch {torch.__version__}")


if __name__ == "__main__":
    main()
