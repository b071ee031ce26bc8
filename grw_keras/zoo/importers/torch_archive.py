"""The zip files of `torch.save`: their entries, and the tensors as bounded views of them.

The format: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py. Every size is
checked against what the file holds before anything is read or made, so that a small file can't
ask for much memory.
"""

import contextlib
import dataclasses
import math
import os
import reprlib
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

# The largest known snapshot, A3 with EMA weights, has 149 MB of tensors and 0.42 MB of pickle.
# A hostile pickle costs up to 100 times its size in Python objects, hence the smaller reserve.
MAX_TENSOR_BYTES = 2**31
MAX_PICKLE_BYTES = 2**22
MAX_RANK = 8  # a convolution kernel over time has 5 axes
MAX_WORD_BYTES = 64  # of the entry "byteorder", which holds one word

BFLOAT16 = "torch.BFloat16Storage"  # numpy has no such type: widened to float32
STORAGES = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    BFLOAT16: "u2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_BYTE_ORDERS = {b"little": "<", b"big": ">"}
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring = 2, 100


class SnapshotError(ValueError):
    """A file is not a snapshot that can be read. Nothing that it asked for was run."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """The numbers that tensors are views of, and their type's name in PyTorch."""

    values: np.ndarray
    kind: str


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Puts the file's name before the message of a `SnapshotError` raised inside."""
    try:
        yield
    except SnapshotError as error:
        raise SnapshotError(f"{os.fspath(path)}: {error}") from error.__cause__


def show(value: Any) -> str:
    """A short text for a value from a file, however large or nested that is."""
    return _SHORT.repr(value)


class Archive:
    """The entries of the zip file: the pickle and, by key, the storages; all stored as they are."""

    def __init__(self, file: IO[bytes]):
        size = file.seek(0, os.SEEK_END)
        self._cut = f"the file is cut off or not a torch zip archive ({size:,} bytes)"
        with self._reading():
            self._zip = zipfile.ZipFile(file)
        entries = self._zip.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) < len(entries):
            raise SnapshotError("the zip archive holds two entries of one name")
        # So that entries which overlap, as those of some zip bombs do, gain nothing.
        if sum(entry.file_size for entry in entries) > size:
            raise SnapshotError(
                f"the zip entries claim more bytes than the file has ({size:,}); torch.save "
                "does not compress"
            )
        roots = [name[: -len("data.pkl")] for name in self._entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise SnapshotError(
                "a torch zip archive has one entry …/data.pkl. "
                f"Received: {show(sorted(self._entries))}"
            )
        self._root = roots[0]
        self.pickle = self._read("data.pkl", MAX_PICKLE_BYTES)
        self._order = self._byte_order()
        self._storages: dict[str, bytes] = {}

    def storage(self, kind: str, key: str, numel: int) -> Storage:
        """The numbers of one storage, which several tensors may share."""
        dtype = np.dtype(self._order + STORAGES[kind])
        if key not in self._storages:
            budget = MAX_TENSOR_BYTES - sum(map(len, self._storages.values()))
            self._storages[key] = self._read(f"data/{key}", budget)
        data = self._storages[key]
        if numel * dtype.itemsize != len(data):
            raise SnapshotError(
                f"storage {show(key)} of {show(numel)} elements of {kind} must have "
                f"{show(numel * dtype.itemsize)} bytes. Received: {len(data):,}"
            )
        return Storage(np.frombuffer(data, dtype), kind)

    def _byte_order(self) -> str:
        if f"{self._root}byteorder" not in self._entries:  # PyTorch before 2.1
            return "<"
        word = self._read("byteorder", MAX_WORD_BYTES)
        if word not in _BYTE_ORDERS:
            raise SnapshotError(f"byteorder must be little or big. Received: {show(word)}")
        return _BYTE_ORDERS[word]

    def _read(self, name: str, limit: int) -> bytes:
        entry = self._entries.get(self._root + name)
        if entry is None:
            raise SnapshotError(f"the zip archive has no entry {show(self._root + name)}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise SnapshotError(f"{show(name)} is compressed, which torch.save never does")
        if entry.file_size > limit:
            raise SnapshotError(
                f"{show(name)} has {entry.file_size:,} bytes, more than the {limit:,} allowed"
            )
        with self._reading(name):
            return self._zip.read(entry)

    @contextlib.contextmanager
    def _reading(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        # What zipfile is seen to raise on damaged files; a failing disk is an OSError as well.
        except (
            zipfile.BadZipFile,
            EOFError,
            NotImplementedError,
            OSError,
            OverflowError,
            RuntimeError,
            ValueError,
        ) as error:
            where = f" in {show(name)}" if name else ""
            raise SnapshotError(f"{self._cut}{where}: {error}") from error


def view(values: np.ndarray, offset: int, sizes: tuple, strides: tuple) -> np.ndarray:
    """The part of a storage that a tensor is, every element of it inside the storage.

    Args:
        values: the whole storage [numel].
        offset, strides: in elements, at least 0.
        sizes: at least 1 each; no more elements than the storage has, so that a stride of 0
            can't make a large tensor of a small file.
    """
    numbers = (offset, *sizes, *strides)
    place = f"offset {show(offset)}, sizes {show(sizes)}, strides {show(strides)}"
    if (
        any(type(number) is not int or number < 0 for number in numbers)
        or len(sizes) != len(strides)
        or len(sizes) > MAX_RANK
        or 0 in sizes
    ):
        raise SnapshotError(f"a tensor has an impossible shape: {place}")
    steps = [stride if size > 1 else 0 for size, stride in zip(sizes, strides, strict=True)]
    last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if last >= len(values) or math.prod(sizes) > len(values):
        raise SnapshotError(f"a tensor reaches outside its {len(values):,} elements: {place}")
    itemsize = values.itemsize
    return np.lib.stride_tricks.as_strided(
        values[offset:], sizes, [step * itemsize for step in steps], writeable=False
    )
