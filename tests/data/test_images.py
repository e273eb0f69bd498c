import os
import pickle
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from ppssl.data import images
from ppssl.data.images import BadImage, ImageFolder, decode
from ppssl.errors import BadRequest
from tests.data.pictures import encode, noise, pil_decode, smooth

PHOTO = smooth(61, 87)
JPEG = encode(PHOTO, quality=90)


def tree(root, *names: str) -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return str(root)


def test_samples_are_sorted_by_class_then_folder_then_name(tmp_path):
    names = ("b/2.jpg", "b/10.PNG", "b/notes.txt", "a/z/1.jpeg", "a/y.webp", "a/y/0.tiff", "B/1.bmp")
    folder = ImageFolder(tree(tmp_path, *names))
    found = [os.path.relpath(folder.path(i), tmp_path) for i in range(len(folder))]
    assert folder.classes == ["B", "a", "b"]
    assert found == ["B/1.bmp", "a/y.webp", "a/y/0.tiff", "a/z/1.jpeg", "b/10.PNG", "b/2.jpg"]
    assert folder.labels.tolist() == [0, 1, 1, 1, 2, 2] and folder.labels.dtype == np.int64
    assert folder.label(-1) == 2 and folder.path(-1).endswith("b/2.jpg")


def test_an_index_beyond_the_samples_is_an_error(tmp_path):
    folder = ImageFolder(tree(tmp_path, "a/1.jpg"))
    for i in (1, -2):
        with pytest.raises(IndexError):
            folder.path(i)


def test_linked_class_folders_are_followed(tmp_path):
    tree(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere")
    assert ImageFolder(tmp_path / "root").path(0) == str(tmp_path / "root" / "a" / "1.jpg")


def test_names_that_are_not_utf8_survive(tmp_path):
    (tmp_path / "a").mkdir()
    name = os.path.join(os.fsencode(tmp_path), b"a", b"\xff\xfe.jpg")
    with open(name, "wb"):
        pass
    assert os.fsencode(ImageFolder(tmp_path).path(0)) == name


def test_a_sample_costs_tens_of_bytes(tmp_path, monkeypatch):
    tree(tmp_path, "a/1.jpg")
    monkeypatch.setattr(images, "image_files", lambda _: (f"n01440764_{i:05d}.JPEG" for i in range(50_000)))
    tracemalloc.start()
    folder = ImageFolder(tmp_path)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(folder) < 60 and folder.path(49_999).endswith("a/n01440764_49999.JPEG")


@pytest.mark.parametrize("files, root, message", [
    (["train/n01/1.jpg"], "val", "no image folder .*val; .* holds train"),
    (["imagenet/train/n01/1.jpg"], "train", "did you mean .*/imagenet/train"),
    (["train/n01/1.jpg"], "train/train", "did you mean .*/train[?]"),
    (["ImageNet/n01/1.jpg"], "Imagenet", "did you mean .*/ImageNet"),
    (["train/n01/1.jpg", "val/n01/1.jpg"], "", "holds the split train, not classes; use .*/train"),
    (["1.jpg"], "", "holds images but no class folders; move them into one"),
    (["readme.txt"], "", "holds no class folders"),
    (["a/1.jpg", "b/notes.txt"], "", r"1 of 2 class folders of .* hold no images \(b\); remove them or add .jpg"),
    (["file.jpg"], "file.jpg", "no image folder"),
])
def test_a_wrong_root_is_one_line_that_names_what_is_there(tmp_path, files, root, message):
    tree(tmp_path, *files)
    with pytest.raises(BadRequest, match=message) as error:
        ImageFolder(tmp_path / root)
    assert "\n" not in str(error.value)


def test_classes_named_like_splits_are_classes_when_they_hold_images(tmp_path):
    assert ImageFolder(tree(tmp_path, "train/1.jpg", "tractor/1.jpg")).classes == ["tractor", "train"]


@pytest.mark.parametrize("kind, options", [
    *(("JPEG", {"quality": quality, "subsampling": subsampling, "progressive": progressive}) for quality in (40, 95)
      for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1") for progressive in (False, True)),
    ("JPEG", {"keep_rgb": True}), ("JPEG", {"restart_marker_blocks": 2}),
    ("PNG", {}), ("BMP", {}), ("PPM", {}), ("GIF", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 60})])
def test_files_decode_as_pil_does(kind, options):
    data = encode(PHOTO, kind, **options)
    ours = decode(data)
    assert ours.dtype == np.uint8 and ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, pil_decode(data))


@pytest.mark.parametrize("mode, kind", [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"),
                                        ("P", "PNG"), ("1", "PNG"), ("L", "PPM"), ("RGBA", "WEBP"), ("CMYK", "TIFF")])
def test_every_colour_mode_decodes_as_pil_does(mode, kind):
    data = encode(Image.fromarray(PHOTO).convert(mode), kind)
    np.testing.assert_array_equal(decode(data), pil_decode(data))


def test_jpeg_without_simplejpeg_decodes_the_same(monkeypatch):
    fast = decode(JPEG)
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    np.testing.assert_array_equal(decode(JPEG), fast)


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(decode(encode(PHOTO, quality=90, exif=exif)), decode(JPEG))


def test_one_pixel_decodes():
    for kind in ("JPEG", "PNG"):
        assert decode(encode(PHOTO[:1, :1], kind)).shape == (1, 1, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_keeps_its_high_byte(kind):
    deep = (np.arange(60 * 70).reshape(60, 70) * 15).astype(np.uint16)
    gray = decode(encode(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(gray, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2))


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + checked + b"\0\0\0\0IDAT"


def jpeg_claiming(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4:]


LZW = encode(noise(64, 64), "TIFF", compression="tiff_lzw")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")          # pytest undoes the filter that the decoder sets
@pytest.mark.parametrize("data, message", [
    (b"", "empty file"), (b"this is a text named .jpg", "not an image"), (JPEG[:2], "not an image"),
    (JPEG[:200], "."), (JPEG[:-2], "truncated"), (JPEG[:len(JPEG) // 2], "truncated"),
    (encode(PHOTO, "PNG")[:900], "truncated"), (LZW[:5000], "."),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    (png_header(20_000, 20_000), "400000000 pixels"), (jpeg_claiming(20_000, 20_000), "400000000 pixels")])
def test_broken_images_are_named_in_one_line(tmp_path, capfd, data, message):
    path = tmp_path / "n01_1.jpg"
    path.write_bytes(data)
    with pytest.raises(BadImage, match=re.escape(str(path)) + ": .*" + message) as error:
        decode(path)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_a_file_that_cannot_be_read_is_a_bad_image(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(BadImage, match="link.jpg: No such file"):
        decode(tmp_path / "link.jpg")


def test_harmless_damage_is_judged_as_pil_judges_it():
    extra = JPEG + b"trailing bytes"
    early_end = bytearray(JPEG)
    early_end[len(JPEG) // 2:len(JPEG) // 2 + 2] = b"\xff\xd9"
    for data in (extra, bytes(early_end)):
        np.testing.assert_array_equal(decode(data), pil_decode(data))


def test_bad_image_travels_between_processes():
    error = pickle.loads(pickle.dumps(BadImage("a.jpg", "empty file")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "empty file", "a.jpg: empty file")
