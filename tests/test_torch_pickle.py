import collections
import os
import pickle
import posix
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from grw_keras.zoo.importers import torch_archive, torch_pickle
from grw_keras.zoo.importers.torch_archive import SnapshotError
from grw_keras.zoo.importers.torch_checkpoint import read

PARAMS_CLASS = "grw_smoothing_models.model.attention.TransformerParams"
ORDERED_DICT = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PARAMS = b"cgrw_smoothing_models.model.attention\nTransformerParams\n"


def push(value) -> bytes:
    """The instructions that push `value`."""
    return pickle.dumps(value, 2)[2:-1]


def identity(numel=4, kind=b"FloatStorage", key="0") -> bytes:
    head = b"(" + push("storage") + b"ctorch\n" + kind + b"\n"
    return head + push(key) + push("cpu") + push(numel) + b"tQ"


def tensor(offset=0, sizes=(4,), strides=(1,), storage=None, grad=b"\x89", **options) -> bytes:
    numbers = push(offset) + push(sizes) + push(strides)
    storage = identity(**options) if storage is None else storage
    return REBUILD + b"(" + storage + numbers + grad + ORDERED_DICT + b")RtR"


def write(path, body, entries=None, *, extra=(), compression=zipfile.ZIP_STORED, protocol=2):
    """A torch zip archive with the pickle instructions `body`; storage 0 holds 0, 1, 2, 3."""
    default = {"data/0": struct.pack("<4f", 0, 1, 2, 3), "byteorder": b"little"}
    entries = {"data.pkl": b"\x80" + bytes([protocol]) + body + b".", **default, **(entries or {})}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in [*entries.items(), *extra]:
            archive.writestr(f"saved/{name}", data)
    return path


def load(path):
    return torch_pickle.load(path, re.compile(re.escape(PARAMS_CLASS)))


@pytest.fixture
def commands(monkeypatch):
    """Records what the hostile files would run, and keeps it from running."""
    ran = []
    for module in (os, posix):
        monkeypatch.setattr(module, "system", ran.append)
    yield ran
    assert not os.path.exists("/tmp/pwned_by_pickle")


class Trusting(pickle.Unpickler):
    """Where each tensor of a trusted fixture lies: (storage key, offset, sizes, strides)."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if name == "_rebuild_tensor_v2":
            return lambda key, offset, sizes, strides, *_: (key, offset, sizes, strides)
        return type(name, (), {})

    def persistent_load(self, pid):
        return pid[2]


class _Dict(collections.OrderedDict):
    pass


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("evil", r"evil\.pt: .*'posix\.system'.*nothing was run"),
        ("evil_dotted", r"evil_dotted\.pt: .*'torch\.serialization os\.system'.*nothing was run"),
        ("truncated", r"truncated\.pt: the file is cut off or not a torch zip .*600,000 bytes"),
        ("version9", r"version9\.pt: .*must have version 10.*version=9"),
    ],
)
def test_fixture_is_refused_and_runs_nothing(shared, commands, file, message):
    for ema in (None, True, False):
        with pytest.raises(SnapshotError, match=message):
            read(shared / "fixtures" / f"{file}.pt", ema=ema)
    assert commands == []


def test_recorder_of_commands_sees_what_pickle_itself_would_run(shared, commands):
    class Naive(Trusting):
        def find_class(self, module, name):
            if module == "posix":
                return pickle.Unpickler.find_class(self, module, name)
            return super().find_class(module, name)

    with zipfile.ZipFile(shared / "fixtures" / "evil.pt") as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        with archive.open(name) as file:
            Naive(file).load()
    assert commands == ["touch /tmp/pwned_by_pickle"]


TWICE = b"q\x00h\x00\x86"  # keeps the top value and makes a pair of it: 2^n values after n times
ENDLESS = b")" + TWICE * 60
HOSTILE = {
    "eval": (b"cbuiltins\neval\n" + push(("1/0",)) + b"R", r"'builtins\.eval'"),
    "command": (b"cposix\nsystem\n" + push(("touch x",)) + b"R", r"'posix\.system'"),
    "longer name": (b"ccollections\nOrderedDict2\n", r"'collections\.OrderedDict2'"),
    "own module": (b"cgrw_keras.zoo\nimporters\n", r"'grw_keras\.zoo\.importers'"),
    "wildcard": (b"cgrw_smoothing_modelsXmodel.attention\nTransformerParams\n", "modelsXmodel"),
    "older": (b"cvideo_retrieval.model.v10\nModel\n", "older snapshot.*re-save"),
    "dotted": (
        push("collections") + push("OrderedDict.fromkeys") + b"\x93",
        r"'collections OrderedDict\.fromkeys'",
    ),
    "metaclass": (push("torch") + push("FloatStorage.__class__") + b"\x93", "__class__"),
    "escaped": (b"ccollections\\x2eabc\nOrdered\\dDict\n", r"'collections.*x2eabc"),
    "half a global": (b"ccollections", "asks for the global"),
    "nameless": (push(1) + push("eval") + b"\x93", "has no name"),
    "INST": (b"(ios\nsystem\n", "instruction INST.*nothing was run"),
    "OBJ": (b"(" + ORDERED_DICT + b"o", "instruction OBJ"),
    "EXT1": (b"\x82\x01", "instruction EXT1"),
    "EXT4": (b"\x84\x01\x00\x00\x00", "instruction EXT4"),
    "PERSID": (b"P0\n", "instruction PERSID"),
    "NEWOBJ_EX": (ORDERED_DICT + b")}\x92", "instruction NEWOBJ_EX"),
    "BYTEARRAY8": (b"\x96" + b"\xff" * 7 + b"\x7f", "instruction BYTEARRAY8"),
    "long text": (b"X\xff\xff\xff\x7fx", "cut off or damaged"),
    "bad text": (b"X\x01\x00\x00\x00\xff", "cut off or damaged"),
    "escape": (b"S'\\d'\n", "instruction STRING"),
    "call with a dict": (ORDERED_DICT + push(({"a": 1},)) + b"R", "calls Global.*nothing was run"),
    "call of a storage": (b"ctorch\nFloatStorage\n" + push((10**12,)) + b"R", "calls Global"),
    "call of the class": (PARAMS + b")R", "calls Global"),
    "call of a number": (push(1) + b")R", "calls 1"),
    "call without a tuple": (ORDERED_DICT + b"}R", "calls Global"),
    "new function": (REBUILD + b")\x81", "calls Global"),
    "new storage": (b"ctorch\nFloatStorage\n)\x81", "calls Global"),
    "new with arguments": (PARAMS + push((1,)) + b"\x81", "calls Global"),
    "function defaults": (REBUILD + push({"__defaults__": 1}) + b"b", "sets attributes"),
    "slots of a function": (REBUILD + push((None, {"__code__": 1})) + b"b", "sets attributes"),
    "class attribute": (ORDERED_DICT + push({"get": 1}) + b"b", "sets attributes"),
    "attribute of a dict": (b"}" + push({"get": 1}) + b"b", "sets attributes"),
    "slots of an instance": (PARAMS + b")\x81" + push((None, {"a": 1})) + b"b", "sets attributes"),
    "items of a tuple": (b")" + push("a") + push(1) + b"s", "sets items"),
    "items of a tensor": (tensor() + push("a") + push(1) + b"s", "sets items"),
    "half an item": (b"}(" + push("a") + b"u", "sets items"),
    "number as key": (b"}" + push(1) + push(1) + b"s", "key must be a string"),
    "endless key": (b"}" + ENDLESS + push(1) + b"s", "key must be a string"),
    "endless argument": (ORDERED_DICT + ENDLESS + b"R", "calls Global"),
    "endless function": (ENDLESS + b")R", r"calls \(\("),
    "memo": (b"j\xff\xff\xff\xff", "never kept"),
    "huge memo": (b"}r\xff\xff\xff\xffj\xfe\xff\xff\xff", "never kept"),
    "underflow": (b"R", "not there"),
    "under the mark": (push(1) + b"(\x85", "not there"),
    "no mark": (b"t", "never opened"),
    "open mark": (b"}(", "does not end with one object"),
    "nothing": (b"", "does not end with one object"),
    "two objects": (b"}}", "does not end with one object"),
    "frame": (b"\x95" + b"\xff" * 8, "does not end with one object"),
    "identity in an identity": (b"(" + identity() * 5 + b"tQ", "not the identity"),
    "tensor as identity": (b"(" + tensor() * 5 + b"tQ", "not the identity"),
    "number as identity": (push(1) + b"Q", "not the identity"),
    "function as storage": (
        b"(" + push("storage") + REBUILD + push("0") + push("cpu") + push(4) + b"tQ",
        "not the identity",
    ),
    "no such storage": (tensor(key="1"), "no entry 'saved/data/1'"),
    "path as storage": (tensor(key="../data.pkl"), "no entry"),
    "too many elements": (tensor(numel=5), "must have 20 bytes. Received: 16"),
    "negative elements": (tensor(numel=-4), "must have -16 bytes"),
    "other type": (tensor(kind=b"DoubleStorage"), "must have 32 bytes"),
    "no storage": (tensor(storage=push(1)), "not the arguments"),
    "too few arguments": (REBUILD + b"(" + identity() + b"tR", "not the arguments"),
    "odd flag": (tensor(grad=push("x")), "not the arguments"),
    "sizes no tuple": (tensor(sizes={}), "not the arguments"),
    "negative size": (tensor(sizes=(-1,)), "impossible shape"),
    "no size": (tensor(sizes=(0,)), "impossible shape"),
    "text as size": (tensor(sizes=("4",)), "impossible shape"),
    "truth as size": (tensor(sizes=(True,)), "impossible shape"),
    "negative stride": (tensor(strides=(-1,)), "impossible shape"),
    "negative offset": (tensor(offset=-1, sizes=(1,)), "impossible shape"),
    "unequal lengths": (tensor(sizes=(2, 2)), "impossible shape"),
    "nine axes": (tensor(sizes=(1,) * 9, strides=(1,) * 9), "impossible shape"),
    "offset outside": (tensor(offset=4, sizes=(), strides=()), "outside its 4 elements"),
    "end outside": (tensor(offset=1), "outside its 4 elements"),
    "stride outside": (tensor(sizes=(2,), strides=(4,)), "outside its 4 elements"),
    "huge stride": (tensor(sizes=(2,), strides=(2**200,)), "outside its 4 elements"),
    "huge size": (tensor(sizes=(2**62,)), "outside its 4 elements"),
    "repeated elements": (tensor(sizes=(2**40,), strides=(0,)), "outside its 4 elements"),
    "overflowing size": (tensor(sizes=(2**32, 2**32), strides=(0, 0)), "outside its 4 elements"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickle_is_refused_quickly_and_runs_nothing(tmp_path, commands, case):
    body, message = HOSTILE[case]
    path = write(tmp_path / "hostile.pt", body, protocol=4)
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotError, match=rf"hostile\.pt: .*(?:{message})") as error:
            load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert len(str(error.value)) < 1500
    assert commands == []


def test_what_is_built_is_plain_data(tmp_path):
    state = b"}" + push("p") + PARAMS + b")\x81" + push({"__class__": 1, "depth": 2}) + b"bs"
    built = load(write(tmp_path / "a.pt", state + push("c") + PARAMS + b"s"))
    assert built["c"] == torch_pickle.Global(PARAMS_CLASS)
    assert type(built["p"]) is torch_pickle.Instance
    assert built["p"].attributes == {"__class__": 1, "depth": 2}


@pytest.mark.parametrize(
    ("kind", "code", "values"),
    [
        ("FloatStorage", "f", [0.5, -1.5, 3.25]),
        ("DoubleStorage", "d", [0.1, -1e300, 3.0]),
        ("HalfStorage", "e", [0.5, -2.0, 3.0]),
        ("LongStorage", "q", [1, -(2**62), 3]),
        ("IntStorage", "i", [1, -(2**31), 3]),
        ("ShortStorage", "h", [1, -300, 3]),
        ("CharStorage", "b", [1, -128, 3]),
        ("ByteStorage", "B", [1, 255, 3]),
        ("BoolStorage", "?", [True, False, True]),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_numbers_of_every_type_and_byte_order_are_read(tmp_path, kind, code, values, order):
    data = struct.pack(f"{'<' if order == 'little' else '>'}3{code}", *values)
    body = tensor(sizes=(3,), numel=3, kind=kind.encode())
    entries = {"data/0": data, "byteorder": order.encode()}
    array = load(write(tmp_path / "a.pt", body, entries))
    assert array.tolist() == values
    assert array.dtype.isnative


@pytest.mark.parametrize("sizes", [(2,), ()])
def test_bfloat16_is_widened(tmp_path, sizes):
    body = tensor(sizes=sizes, strides=(1,) * len(sizes), numel=2, kind=b"BFloat16Storage")
    data = struct.pack("<2f", 1.5, -0.15625)
    halves = {"data/0": data[2:4] + data[6:8]}
    array = load(write(tmp_path / "a.pt", body, halves))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.5, -0.15625] if sizes else 1.5)


@pytest.mark.parametrize(
    ("offset", "sizes", "strides", "expected"),
    [
        (0, (2, 2), (2, 1), [[0, 1], [2, 3]]),
        (0, (2, 2), (1, 2), [[0, 2], [1, 3]]),
        (1, (2,), (2,), [1, 3]),
        (3, (), (), 3),
        (2, (1, 2), (2**70, 1), [[2, 3]]),  # the stride of one element is never walked
        (0, (3, 1), (0, 5), [[0], [0], [0]]),
    ],
)
def test_offset_sizes_and_strides_are_honoured(tmp_path, offset, sizes, strides, expected):
    array = load(write(tmp_path / "a.pt", tensor(offset, sizes, strides)))
    np.testing.assert_array_equal(array, np.array(expected, np.float32), strict=True)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra": [("data/0", b"x" * 16)]}, "two entries of one name"),
        ({"extra": [("more/data.pkl", b"N.")]}, r"one entry …/data\.pkl"),
        ({"entries": {"byteorder": b"middle"}}, "byteorder must be little or big"),
        ({"entries": {"byteorder": b"x" * 99}}, "'byteorder' has 99 bytes, more than the 64"),
        ({"entries": {"data/0": b"x" * 15}}, "must have 16 bytes. Received: 15"),
        ({"entries": {"data/0": bytes(16)}, "compression": zipfile.ZIP_DEFLATED}, "compressed"),
        (
            {"entries": {"data/1": bytes(10**6)}, "compression": zipfile.ZIP_DEFLATED},
            "claim more bytes than the file has.*does not compress",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_odd_archive_is_refused(tmp_path, options, message):
    path = write(tmp_path / "odd.pt", tensor(), **options)
    with pytest.raises(SnapshotError, match=rf"odd\.pt: .*{message}"):
        load(path)


def test_file_that_is_no_archive_is_refused_and_a_missing_one_is_not_found(tmp_path):
    for data in (b"", b"\x80\x02}.", b"PK\x05\x06" + bytes(18), b"x" * 1000):
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(
            SnapshotError, match=r"a\.pt: (the file is cut off or not a torch|a tor)"
        ):
            read(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_limits_hold(tmp_path, monkeypatch):
    path = write(tmp_path / "a.pt", b"}" + b"".join(push(k) + tensor() + b"s" for k in "abc"))
    monkeypatch.setattr(torch_pickle, "MAX_TENSOR_BYTES", 48)
    assert len(load(path)) == 3
    monkeypatch.setattr(torch_pickle, "MAX_TENSOR_BYTES", 47)
    with pytest.raises(SnapshotError, match="tensors take more than the 47 bytes"):
        load(path)
    monkeypatch.setattr(torch_archive, "MAX_TENSOR_BYTES", 15)
    with pytest.raises(SnapshotError, match="'data/0' has 16 bytes, more than the 15 allowed"):
        load(path)
    monkeypatch.setattr(torch_archive, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(SnapshotError, match=r"'data\.pkl' has .* more than the 100 allowed"):
        load(path)


def test_file_cut_anywhere_never_loads(shared, tmp_path):
    data = (shared / "fixtures" / "tiny_ok.pt").read_bytes()
    rng = np.random.default_rng(0)
    cuts = {*map(int, rng.integers(len(data), size=60)), *range(1, 30), 22, 100}
    for kept in cuts | {len(data) - cut for cut in range(1, 60)}:
        (tmp_path / "cut.pt").write_bytes(data[:kept])
        with pytest.raises(SnapshotError, match=rf"cut off or not a torch zip.*{kept:,} bytes"):
            read(tmp_path / "cut.pt")


def test_flipped_byte_of_a_weight_is_noticed(shared, tmp_path):
    data = bytearray((shared / "fixtures" / "tiny_ok.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(SnapshotError, match=r"in 'data/\d+': Bad CRC-32"):
        read(tmp_path / "flipped.pt")


@pytest.mark.parametrize("target", ["pickle", "archive"])
def test_random_damage_loads_or_is_a_snapshot_error(tmp_path, commands, target):
    body = b"}" + push("w") + tensor(sizes=(2, 2), strides=(2, 1)) + b"s" + push("p") + PARAMS
    body += b")\x81" + push({"depth": 2}) + b"bs"
    whole = write(tmp_path / "a.pt", body).read_bytes()
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(400):
        data = bytearray(body if target == "pickle" else whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        path = tmp_path / "b.pt"
        if target == "pickle":
            write(path, bytes(data))
        else:
            path.write_bytes(data)
        try:
            load(path)
            outcomes.add("loaded")
        except SnapshotError:
            outcomes.add("refused")
    assert "refused" in outcomes
    assert commands == []
