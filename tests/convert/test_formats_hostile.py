"""Files that want memory, time or code get none of it."""

import collections
import os
import pickle
import struct
from argparse import Namespace

import numpy as np
import pytest

from convert.formats import load, save_torch, unpickle
from tests.convert.formats_helpers import archive, refusal

LEGACY_HEAD = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def torch_zip(pickled: bytes, storage: bytes = bytes(16)) -> bytes:
    return archive({"archive/data.pkl": pickled, "archive/data/0": storage})


def tensor(offset: int, shape: tuple, strides: tuple) -> bytes:
    """A pickle of one float32 tensor on storage 0 of 4 elements, with any numbers."""
    storage = b"(" + text("storage") + global_("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
    numbers = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, shape, strides))
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89}tR."


def test_the_tensor_builder_of_these_tests_builds_a_tensor(tmp_path):
    (tmp_path / "file").write_bytes(torch_zip(tensor(1, (3,), (1,))))
    assert load(tmp_path / "file").tree.shape == (3,)


@pytest.mark.parametrize("offset, shape, strides", [
    (1, (4,), (1,)), (0, (2,), (4,)), (-1, (2,), (1,)), (3, (2,), (-1,)), (0, (-2,), (1,)), (0, (5,), (1,)),
    (0, (2**40,), (0,)), (0, (2**62, 2**62), (0, 0)), (0, (2,), (1, 1)), (2**70, (2,), (1,)), (0, (1.0,), (1,)),
])
def test_tensors_outside_their_storage_are_refused(tmp_path, offset, shape, strides):
    refusal(tmp_path / "file", torch_zip(tensor(offset, shape, strides)))


# --- pickles that want memory or time

ENDLESS = b")" + 60 * b"2\x86"  # a tuple that holds another twice, and so on: its hash takes 2 ** 60 steps

def nested(depth: int) -> bytes:
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


def shared_lists(depth: int) -> bytes:
    """2 ** depth nodes in a few bytes: each list holds the one before it twice."""
    doubled = (b"]\x94(" + 2 * (b"j" + struct.pack("<I", i)) + b"e" for i in range(depth))
    return b"\x80\x04]\x94" + b"".join(doubled) + b"."


@pytest.mark.parametrize("content", [
    nested(100_000),
    shared_lists(60),
    b"\x80\x04]\x94h\0a.",
    b"\x80\x02Kr\xff\xff\xff\xff" + b".",
    b"\x80\x02Kr\xff\xff\xff\xff",
    b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    b"\x80\x05\x96" + struct.pack("<Q", 2**31) + b"x.",
    b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    b"\x80\x04X\xff\xff\xff\xffx.",
])
def test_pickles_that_claim_much_are_refused_at_once(tmp_path, content):
    refusal(tmp_path / "file", content)


@pytest.mark.parametrize("opcodes", [
    b"}" + ENDLESS + b"Ns", b"}(" + ENDLESS + b"Nu", b"(" + ENDLESS + b"Nd",  # keys of dicts
    b"\x8f(" + ENDLESS + b"\x90", b"(" + ENDLESS + b"\x91",  # items of sets
    global_("numpy", "dtype") + ENDLESS + b"\x85R",
    b"(" + text("storage") + global_("torch", "FloatStorage") + ENDLESS + text("cpu") + b"K\x04tQ",
    tensor(0, (2,), (1,))[2:-1].replace(b"K\x00", ENDLESS, 1).replace(b"K\x02\x85", b"(" + ENDLESS + b"t", 1),
])
def test_values_that_take_for_ever_to_hash_or_compare_are_refused(tmp_path, opcodes):
    refusal(tmp_path / "file", torch_zip(b"\x80\x04" + opcodes + b"."))


def test_repeated_byte_strings_deep_trees_and_long_pickles_are_named(tmp_path, monkeypatch):
    encode = text("x" * 10_000) + b"q\0" + global_("_codecs", "encode") + b"q\1"
    repeated = b"\x80\x02" + encode + 99 * (b"h\1h\0" + text("latin1") + b"\x86R") + b"."
    assert "repeats a byte string" in refusal(tmp_path / "file", repeated)
    assert "nested absurdly deep" in refusal(tmp_path / "file", nested(200))
    monkeypatch.setattr(unpickle, "MAX_READS", 500)
    assert "absurdly long" in refusal(tmp_path / "file", nested(501))
    (tmp_path / "file").write_bytes(nested(90))
    assert load(tmp_path / "file").format == "paddle"


# --- pickles that want to run code

class Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def hostile_objects(canary) -> list:
    """(what must be named, an object whose unpickling touches the canary)"""
    shell = Calls(os.system, f"touch {canary}")
    script = f"open({str(canary)!r}, 'w').close()"
    return [
        ("posix.system", shell),
        ("posix.system", {"model": {"w": shell}}),
        ("posix.system", Namespace(inner=collections.OrderedDict(a=[Calls(tuple, (1, shell))]))),
        ("builtins.eval", {"model": Calls(eval, script)}),
        ("builtins.exec", [Calls(exec, script)]),
        ("io.open", Calls(open, str(canary), "w")),
    ]


def wrap(pickled: bytes, container: str) -> bytes:
    """The pickle as it would come in each kind of file."""
    honest = pickle.dumps({}, 2)
    heads = [pickle.dumps(value, 2) for value in LEGACY_HEAD]
    keys = pickle.dumps([], 2)
    return {
        "paddle": lambda: pickled,
        "torch-zip": lambda: torch_zip(pickled),
        "zip root": lambda: archive({"data.pkl": pickled}),
        "second in zip": lambda: archive({"archive/data.pkl": honest, "archive/extra/data.pkl": pickled}),
        "legacy version": lambda: heads[0] + pickled,
        "legacy system": lambda: b"".join(heads[:2]) + pickled,
        "legacy tree": lambda: b"".join(heads) + pickled + keys,
        "legacy keys": lambda: b"".join(heads) + honest + pickled,
    }[container]()


CONTAINERS = ["paddle", "torch-zip", "zip root", "second in zip", "legacy version", "legacy system", "legacy tree",
              "legacy keys"]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_hidden_in_any_file_are_named_and_not_made(tmp_path, container, protocol):
    canary = tmp_path / "canary"
    for wanted, value in hostile_objects(canary):
        message = refusal(tmp_path / "file", wrap(pickle.dumps(value, protocol), container))
        assert wanted in message.replace("__builtin__", "builtins") and not canary.exists()


def test_each_call_does_touch_the_canary_when_its_pickle_is_run(tmp_path):
    for _, value in hostile_objects(tmp_path / "canary"):
        pickle.loads(pickle.dumps(value, 4))
        (tmp_path / "canary").unlink()


@pytest.mark.parametrize("wanted", [
    "torch.hub.load", "torch.load", "torch.serialization.load", "torch.storage._load_from_bytes",
    "torch._utils.os.system", "torch._utils._rebuild_tensor_v2.__globals__", "torch._utils._import_dotted_name",
    "torch.utils.cpp_extension.load", "torch.jit.load", "numpy.load", "numpy.core.multiarray.add_docstring",
    "numpy._core.multiarray.fromfile",
    "argparse.Namespace.__init__", "argparse.open", "collections.OrderedDict.fromkeys", "collections.namedtuple",
    "_codecs.lookup", "_codecs.decode", "builtins.getattr", "builtins.type", "builtins.bytearray", "builtins.map",
    "os.system", "nt.system", "subprocess.Popen", "functools.partial", "operator.attrgetter", "copyreg._reconstructor",
    "copy_reg._reconstructor", "pickle.loads", "convert.formats.load", "paddle.load", "importlib.import_module",
    "torch.FloatStorage.from_file", "runpy.run_path", "numpy.dtype.__class__", "codecs.encode",
])
@pytest.mark.parametrize("by_pieces", [False, True], ids=["GLOBAL", "STACK_GLOBAL"])
def test_globals_beyond_the_table_are_refused_by_name(tmp_path, wanted, by_pieces):
    module, name = wanted.rsplit(".", 1)
    reach = text(module) + b"\x94" + text(name) + b"\x93" if by_pieces else global_(module, name)
    message = refusal(tmp_path / "file", b"\x80\x04" + reach + text("x") + b"\x85R.")
    assert wanted in message


def canary_call(canary, opcodes: str) -> bytes:
    """os.system through the opcodes other than REDUCE that instantiate things."""
    command = text(f"touch {canary}")
    return b"\x80\x04" + {
        "INST": b"(" + command + b"ios\nsystem\n",
        "OBJ": b"(" + global_("os", "system") + command + b"o",
        "NEWOBJ": global_("os", "system") + command + b"\x85\x81",
        "NEWOBJ_EX": global_("os", "system") + command + b"\x85}\x92",
        "STACK_GLOBAL": text("os") + text("system") + b"\x93" + command + b"\x85R",
        "nested GLOBAL": text("os") + text("path.os.system") + b"\x93" + command + b"\x85R",
    }[opcodes] + b"."


@pytest.mark.parametrize("opcodes", ["INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "nested GLOBAL"])
def test_no_opcode_reaches_a_foreign_function(tmp_path, opcodes):
    message = refusal(tmp_path / "file", canary_call(tmp_path / "canary", opcodes))
    assert "system" in message and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("opcodes", [
    b"\x82\x01",  # EXT1, the extension registry
    global_("argparse", "Namespace") + b"}" + text("__init__") + b"Nsb",  # state for a function
    global_("numpy", "dtype") + b"}" + text("restore") + b"Nsb",  # state for a class
    global_("collections", "OrderedDict") + text("x") + b"a",  # append to a function
    global_("argparse", "Namespace") + text("a") + text("b") + b"s",  # item of a function
    global_("torch", "Size") + text("x") + b"\x85R",  # wrong argument
    global_("collections", "OrderedDict"),  # a function as a value
    b"Px\n",  # persistent ids that are no storages
    text("x") + b"Q",
    b"]}b",  # state for a list
])
def test_misused_opcodes_are_refused_and_change_nothing(tmp_path, opcodes):
    refusal(tmp_path / "file", b"\x80\x04" + opcodes + b".")
    save_torch(tmp_path / "after", {"args": Namespace(a=1), "w": np.ones(2)})
    assert load(tmp_path / "after").tree["args"] == Namespace(a=1)


def test_a_namespace_may_hold_any_name(tmp_path):
    tricky = {"__class__": "x", "__dict__": 1, "self": 2, "lr": 0.1}
    state = b"".join(text(name) + pickle.dumps(value, 2)[2:-1] + b"s" for name, value in tricky.items())
    (tmp_path / "file").write_bytes(b"\x80\x02]" + global_("argparse", "Namespace") + b")\x81}" + state + b"ba.")
    assert vars(load(tmp_path / "file").tree[0]) == tricky


def test_messages_stay_one_printable_line(tmp_path):
    refusal(tmp_path / "file", b"\x80\x04" + text("os\nevil\x1b[2J") + text("x" * 10_000) + b"\x93.")
