"""What is no checkpoint, damaged or absurd is refused in one line."""

import json
import os
import pickle
import random
import struct
import zipfile

import joblib
import numpy as np
import pytest
import torch

from convert.formats import Loaded, Refused, load, save_checkpoint
from tests.convert.formats_helpers import archive, refusal, small_files

FORMATS = ("torch-zip", "torch-legacy", "paddle", "safetensors", "ppssl")


# --- no checkpoint at all

@pytest.mark.parametrize("content, named", [
    (b"", "empty"),
    (b"epoch: 3\nlr: 1e-3\n", "a text"),
    ("größe".encode() * 200, "a text"),
    (b"\n<!DOCTYPE html><p>404", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
    (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
    (b"\0" * 64, "neither PyTorch"),
    (b"\0", "neither PyTorch"),
    (pickle.dumps("hello", 4), "a pickle of a str"),
    (pickle.dumps({"w": object()}, 4), "builtins.object"),
    (pickle.dumps({(1, 2): 3}, 4), "a dict key is a tuple"),
    (pickle.dumps({"w": b"x" * 1000}, 4), "tree.w is a memoryview"),
    (pickle.dumps({"w": np.array(["x"])}, 4), "type U1"),
    (pickle.dumps({"w": np.zeros(2, ">f4")}, 4), "big-endian"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_other_content_is_named(tmp_path, content, named):
    assert named in refusal(tmp_path / "file", content)


def test_missing_files_folders_and_pipes_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "No such file" in refusal(tmp_path / "absent")
    assert "is a folder" in refusal(tmp_path)
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_npz_and_joblib_files_are_not_checkpoints(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    joblib.dump({"w": np.ones(2)}, tmp_path / "a.joblib")
    assert "not a checkpoint" in refusal(tmp_path / "a.npz")
    assert "not a checkpoint" in refusal(tmp_path / "a.joblib")


def test_torchscript_is_named(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "file")
    assert "TorchScript" in refusal(tmp_path / "file")


def test_a_whole_pickled_module_is_named_by_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "file")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "file")


def test_lazily_conjugated_tensors_are_named(tmp_path):
    torch.save(torch.ones(2, dtype=torch.complex64).conj(), tmp_path / "file")
    assert "resolve_conj" in refusal(tmp_path / "file")


# --- damaged

@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    content = small_files(tmp_path)[name].read_bytes()
    for length in range(0, len(content), 1 + len(content) // 400):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(Refused):
            load(tmp_path / "cut")


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_left_over_are_refused(tmp_path, name):
    refusal(tmp_path / "file", small_files(tmp_path)[name].read_bytes() + b"\0" * 8)


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bits_are_refused_or_harmless(tmp_path, name):
    content, rng = small_files(tmp_path)[name].read_bytes(), random.Random(0)
    for _ in range(400):
        broken = bytearray(content)
        for _ in range(rng.choice([1, 1, 4])):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        (tmp_path / "broken").write_bytes(broken)
        try:
            assert isinstance(load(tmp_path / "broken"), Loaded)
        except Refused:
            pass


def test_every_flipped_bit_of_an_own_checkpoint_is_found(tmp_path):
    save_checkpoint(tmp_path / "file", {"w": np.ones(2)}, {})
    content = (tmp_path / "file").read_bytes()
    for bit in range(8 * len(content)):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(Refused):
            load(tmp_path / "broken")


def test_verification_names_the_checksum_and_can_be_left_out(tmp_path):
    save_checkpoint(tmp_path / "file", {"w": np.ones(2)}, {})
    content = (tmp_path / "file").read_bytes()
    assert "checksum" in refusal(tmp_path / "file", content[:-1] + b"\1")
    assert load(tmp_path / "file", verify=False).tree["w"][0] == 1


def test_a_resaved_own_checkpoint_is_refused_unless_unverified(tmp_path):
    header = b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'","format":"ppssl"}}'
    assert "another tool" in refusal(tmp_path / "file", struct.pack("<Q", len(header)) + header)
    assert load(tmp_path / "file", verify=False).format == "ppssl"


# --- safetensors headers

def safetensors_file(header, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("header, body, length, named", [
    ({"w": entry()}, bytes(4), 2**63, "absurd length"),
    ({"w": entry()}, bytes(4), 10**8 + 1, "claims 100000001 bytes"),
    ({"w": entry()}, bytes(4), 1000, "claims 1000 bytes"),
    ({"w": entry()}, bytes(8), None, "need 4 bytes, the file has 8"),
    ({"w": entry()}, bytes(3), None, "need 4 bytes, the file has 3"),
    ({"w": entry(offsets=(4, 8))}, bytes(8), None, "hole"),
    ({"v": entry(), "w": entry(offsets=(2, 6))}, bytes(6), None, "overlap"),
    ({"v": entry(), "w": entry()}, bytes(4), None, "overlap"),
    ({"w": entry(shape=(2,))}, bytes(4), None, "shape"),
    ({"w": entry(shape=(2**62, 4, 2**62))}, bytes(4), None, "shape"),
    ({"w": entry(shape=(-1, -1))}, bytes(4), None, "damaged"),
    ({"w": entry(shape=(1.0,))}, bytes(4), None, "damaged"),
    ({"w": entry(shape=(True,))}, bytes(4), None, "damaged"),
    ({"w": entry(offsets=(0, "4"))}, bytes(4), None, "damaged"),
    ({"w": entry("F8_E4M3", offsets=(0, 4))}, bytes(4), None, "unknown type F8_E4M3"),
    ({"w": 1}, b"", None, "damaged"),
    ({"__metadata__": {"a": 1}}, b"", None, "metadata"),
    ({"__metadata__": None}, b"", None, "metadata"),
    (b'{"w":1,"w":2}', b"", None, "twice"),
    (b'{"a":' * 50_000, b"", None, "damaged"),
    (b"{" + b"x" * 20, b"", None, "damaged"),
])
def test_abused_safetensors_headers_are_refused(tmp_path, header, body, length, named):
    assert named in refusal(tmp_path / "file", safetensors_file(header, body, length))


# --- zip archives

def test_compressed_archives_are_refused_unread(tmp_path):
    bomb = archive({"archive/data.pkl": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(tmp_path / "file", bomb)


def test_overlapping_doubled_and_oversized_members_are_refused(tmp_path):
    honest = archive({"archive/data.pkl": pickle.dumps({}, 2), "archive/data/0": b"x" * 50, "archive/data/1": b"y"})
    directory = honest.index(b"PK\1\2")
    entries = [honest.index(f"archive/{name}".encode(), directory) - 46 for name in ("data/0", "data/1")]

    def edited(field: int, form: str, *values) -> bytes:
        broken = bytearray(honest)
        struct.pack_into(form, broken, entries[1] + field, *values)
        return bytes(broken)

    offset_of_first = struct.unpack_from("<I", honest, entries[0] + 42)[0]
    assert "overlap" in refusal(tmp_path / "file", edited(42, "<I", offset_of_first))
    assert "beyond the file" in refusal(tmp_path / "file", edited(20, "<II", 2**31, 2**31))
    assert "one name" in refusal(tmp_path / "file", edited(46, "14s", b"archive/data/0"))
    assert "0 data.pkl" in refusal(tmp_path / "file", archive({"archive/version": b"3"}))


def test_big_endian_files_are_refused(tmp_path):
    content = archive({"archive/data.pkl": pickle.dumps({}, 2), "archive/byteorder": b"big"})
    assert "big-endian" in refusal(tmp_path / "file", content)
