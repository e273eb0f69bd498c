"""Image folders and decoding, as torchvision's ImageFolder and its PIL loader do it."""
import difflib
import io
import os
import warnings
from array import array
from collections.abc import Iterator
from functools import cache

import numpy as np

from ppssl.errors import BadRequest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train", "val", "valid", "validation", "test"}
PIL_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # no format whose reader starts other programs (EPS)
MAX_PIXELS = 178_956_970                                  # beyond it PIL refuses an image as a decompression bomb


class BadImage(ValueError):
    """An image that cannot be decoded: path and reason, in one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)                    # both are kept when it travels between processes
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ImageFolder:
    """The images of root/class/**/image.jpg. `classes` are the sorted folder names, a label is an index into them.

    Samples are ordered by class, then by folder, then by name, as in torchvision `datasets/folder.py`. All names stand
    in one byte string, so that a million samples are not a million objects which forked workers would come to copy.
    Raises BadRequest where the folder does not have that form, naming what was found instead.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = os.fspath(root)
        self.classes = class_folders(self.root)
        names, ends, counts = bytearray(), array("q", [0]), []
        for folder in self.classes:
            before = len(ends)
            for name in image_files(os.path.join(self.root, folder)):
                names += os.fsencode(name)
                ends.append(len(names))
            counts.append(len(ends) - before)
        check_all_filled(self.root, self.classes, counts)
        self.labels = np.repeat(np.arange(len(counts)), counts)                                # [N] int64
        self._names, self._ends = bytes(names), np.array(ends)

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def path(self, i: int) -> str:
        i = range(len(self))[i]                           # negative indices, and IndexError beyond the end
        name = self._names[self._ends[i]:self._ends[i + 1]]
        return os.path.join(self.root, self.classes[self.labels[i]], os.fsdecode(name))


def class_folders(root: str) -> list[str]:
    """Sorted names of the folders in root. Raises BadRequest where they cannot be classes."""
    if not os.path.isdir(root):
        raise BadRequest(f"no image folder {root}; {what_is_there(root)}")
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    if not folders:
        images = any(name.lower().endswith(EXTENSIONS) for name in os.listdir(root))
        raise BadRequest(f"{root} holds images but no class folders; move them into one, such as {root}/all" if images
                         else f"{root} holds no class folders; images belong in {root}/<class>/")
    for split in sorted(SPLITS.intersection(folders)):    # a class may be named so too, but has no folders inside
        if subfolders(os.path.join(root, split)):
            raise BadRequest(f"{root} holds the split {split}, not classes; use {os.path.join(root, split)}")
    return folders


def image_files(folder: str) -> Iterator[str]:
    """Names of the images below folder, relative to it, in torchvision's order; follows links."""
    def fail(error: OSError):                             # os.walk would pass over what it cannot read
        raise error

    for path, _, files in sorted(os.walk(folder, followlinks=True, onerror=fail)):
        inside = path[len(folder) + 1:]
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS):
                yield os.path.join(inside, name)


def check_all_filled(root: str, classes: list[str], counts: list[int]) -> None:
    empty = [name for name, count in zip(classes, counts) if not count]
    if empty:
        named = ", ".join(empty[:3]) + (", ..." if empty[3:] else "")
        raise BadRequest(f"{len(empty)} of {len(classes)} class folders of {root} hold no images ({named}); "
                         f"remove them or add {', '.join(EXTENSIONS)}")


def what_is_there(missing: str) -> str:
    """For a path that does not exist: the folder that was probably meant, or what its nearest existing parent holds."""
    missing = os.path.abspath(missing)
    name, parent = os.path.basename(missing), os.path.dirname(missing)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    folders = subfolders(parent)
    below = [os.path.join(parent, folder, name) for folder in folders[:100]]
    similar = [os.path.join(parent, folder) for folder in difflib.get_close_matches(name, folders, 1)]
    meant = [parent] * (os.path.basename(parent) == name) + [path for path in below if os.path.isdir(path)] + similar
    if meant:
        return f"did you mean {meant[0]}?"
    return f"{parent} holds {', '.join(folders[:3]) or 'no folders'}{', ...' if folders[3:] else ''}"


def subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def decode(source: str | os.PathLike | bytes) -> np.ndarray:
    """An image file, or its bytes -> uint8 [H, W, 3] RGB, as PIL's open and convert("RGB") give it.

    EXIF orientation is not applied, alpha is dropped, palettes and gray are expanded. One deviation: 16-bit gray keeps
    its high byte, where PIL would clip all but its 256 darkest levels to white. Raises BadImage, also for a file that
    cannot be read and for more than PIL's limit of pixels.
    """
    name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
    try:
        data = source if isinstance(source, bytes) else read(source)
        if not data:
            raise ValueError("empty file")
        image = decode_jpeg(data)
        return decode_with_pil(data) if image is None else image
    except Exception as error:                            # decoders raise errors of every kind on broken data
        raise BadImage(name, reason(error)) from error


def read(path: str | os.PathLike) -> bytes:
    with open(path, "rb") as f:
        return f.read()


def reason(error: Exception) -> str:
    """One line that says what is wrong with the image."""
    if type(error).__name__ == "UnidentifiedImageError":
        return f"not an image in a format that is read ({', '.join(PIL_FORMATS)})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def decode_jpeg(data: bytes) -> np.ndarray | None:
    """The fast path for flawless gray and colour JPEG; None leaves the data to PIL, the judge of everything else.

    simplejpeg gives PIL's pixels faster than PIL and OpenCV, and unlike OpenCV reports truncated data. Where it is not
    installed everything goes to PIL.
    """
    try:
        import simplejpeg

        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        flawless = colorspace in ("YCbCr", "RGB", "Gray") and height * width <= MAX_PIXELS
        return simplejpeg.decode_jpeg(data) if flawless else None
    except (ImportError, ValueError):
        return None


def decode_with_pil(data: bytes) -> np.ndarray:
    picture = pil_image().open(io.BytesIO(data), formats=PIL_FORMATS)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))


@cache
def pil_image():
    """PIL's Image module, its warnings silenced: odd metadata and large sizes do not concern the pixels."""
    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image
