"""PyTorch's pickles, read by an interpreter that imports nothing and calls nothing by name.

`pickle.Unpickler` with an allow-list is not enough: BUILD sets attributes on whatever it is
given, the memo grows to the index that a file asks for, and the extension registry gets past the
list. So the few instructions that `torch.save` writes for a dict of tensors are carried out here,
as PyTorch's own `weights_only` loader does, and all others are refused. The instructions:
https://github.com/python/cpython/blob/main/Lib/pickletools.py.
"""

import dataclasses
import io
import os
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grw_keras.zoo.importers.torch_archive import (
    BFLOAT16,
    MAX_TENSOR_BYTES,
    STORAGES,
    Archive,
    SnapshotError,
    Storage,
    naming,
    show,
    view,
)

ORDERED_DICT = "collections.OrderedDict"
REBUILD = "torch._utils._rebuild_tensor_v2"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INSTRUCTIONS = {opcode.code: opcode for opcode in pickletools.opcodes}
_WITH_ARGUMENT = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"} | {
    "PROTO", "FRAME", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that the pickle refers to: never imported, compared only."""

    name: str


@dataclasses.dataclass(frozen=True)
class Instance:
    """An object of an inert class: its name and the attributes that the file gives it."""

    cls: str
    attributes: dict[str, Any] = dataclasses.field(repr=False)  # a repr could be endless


def load(path: str | os.PathLike, inert: re.Pattern[str]) -> Any:
    """The object in a file written by `torch.save`, with numpy arrays for tensors.

    Args:
        path: a zip file of `torch.save` (PyTorch 1.6 or later).
        inert: full match of the dotted names of classes that the file may refer to. They become
            `Global`s, their objects `Instance`s; no code of theirs is needed or run.

    Returns:
        Dicts, tuples, str, int, bool, None, read-only arrays, and those two.

    Raises:
        OSError: the file can't be opened.
        SnapshotError: it is cut off, malformed, too large, or asks for anything else.
    """
    with Path(path).open("rb") as file, naming(path):
        archive = Archive(file)
        return _Machine(archive, inert).run(archive.pickle)


class _Machine:
    """Carries out a pickle's instructions; they build plain data and nothing else."""

    def __init__(self, archive: Archive, inert: re.Pattern[str]):
        self._archive = archive
        self._inert = inert
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each open mark
        self._memo: dict[int, Any] = {}
        self._tensor_bytes = 0

    def run(self, data: bytes) -> Any:
        """The one object that the pickle describes."""
        for name, argument in _instructions(data):
            self._step(name, argument)
        if len(self._stack) != 1 or self._outer:
            raise SnapshotError("the pickle does not end with one object")
        return self._stack[0]

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME" | "STOP":
                return
            case "MARK":
                self._outer.append(self._stack)
                self._stack = []
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._top()
            case "BUILD":
                self._build(self._pop())
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._pop_to_mark())
            case _:
                value = self._value(name, argument)  # which may replace the stack
                self._stack.append(value)

    def _value(self, name: str, argument: Any) -> Any:
        """What an instruction that only pushes a value pushes."""
        match name:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                return argument
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                return _CONSTANTS[name]
            case "EMPTY_DICT":
                return {}
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple(reversed([self._pop() for _ in range(_TUPLES[name])]))
            case "TUPLE":
                return tuple(self._pop_to_mark())
            case "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise SnapshotError(f"the pickle recalls what it never kept: {argument}")
                return self._memo[argument]
            case "GLOBAL":
                return self._global(*argument)
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                return self._global(module, attribute)
            case "BINPERSID":
                return self._storage(self._pop())
            case "REDUCE" | "NEWOBJ":
                arguments, function = self._pop(), self._pop()
                return self._call(function, arguments, new=name == "NEWOBJ")
            case _:
                raise SnapshotError(
                    f"the pickle holds the instruction {name}, which no snapshot needs; nothing "
                    "was run"
                )

    def _top(self) -> Any:
        if not self._stack:
            raise SnapshotError("the pickle takes a value that is not there")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._outer:
            raise SnapshotError("the pickle closes a group that it never opened")
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _global(self, module: Any, attribute: Any) -> Global:
        if type(module) is not str or type(attribute) is not str:
            raise SnapshotError(f"a global has no name: {show(module)}, {show(attribute)}")
        # A dot in the attribute would be resolved as a path into the module.
        name = f"{module}.{attribute}" if "." not in attribute else f"{module} {attribute}"
        if name in (ORDERED_DICT, REBUILD) or name in STORAGES or self._inert.fullmatch(name):
            return Global(name)
        raise SnapshotError(
            f"the pickle asks for the global {show(name)}, which no snapshot needs; nothing was "
            f"run. {_advice(module)}"
        )

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            raise SnapshotError(f"the pickle sets items of {show(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise SnapshotError(f"a key must be a string. Received: {show(key)}")
            target[key] = value

    def _build(self, state: Any) -> None:
        """Attributes of an `Instance`; on a dict only PyTorch's `_metadata`, which is dropped."""
        target = self._top()
        if type(target) is Instance and not target.attributes and type(state) is dict:
            target.attributes.update(state)
        elif type(target) is not dict or type(state) is not dict or state.keys() != {"_metadata"}:
            raise SnapshotError(f"the pickle sets attributes {show(state)} of {show(target)}")

    def _call(self, function: Any, arguments: Any, *, new: bool) -> Any:
        if type(function) is Global and type(arguments) is tuple:
            if new and not arguments and self._inert.fullmatch(function.name):
                return Instance(function.name, {})
            if function == Global(ORDERED_DICT) and not arguments:
                return {}
            if function == Global(REBUILD) and not new:
                return self._tensor(arguments)
        raise SnapshotError(
            f"the pickle calls {show(function)} with {show(arguments)}; nothing was run"
        )

    def _storage(self, identity: Any) -> Storage:
        match identity:
            case (str(tag), Global(kind), str(key), str(), int(numel)) if (
                tag == "storage" and kind in STORAGES
            ):
                return self._archive.storage(kind, key, numel)
        raise SnapshotError(f"not the identity of a storage: {show(identity)}")

    def _tensor(self, arguments: tuple) -> np.ndarray:
        match arguments:
            case (
                Storage() as storage,
                int(offset),
                tuple(sizes),
                tuple(strides),
                bool(),
                dict(hooks),
            ) if not hooks:
                array = view(storage.values, offset, sizes, strides)
            case _:
                raise SnapshotError(f"not the arguments of a tensor: {show(arguments)}")
        if storage.kind == BFLOAT16:
            array = np.asarray(array.astype("u4") << 16).view("f4")
        self._tensor_bytes += array.nbytes
        if self._tensor_bytes > MAX_TENSOR_BYTES:
            raise SnapshotError(
                f"the tensors take more than the {MAX_TENSOR_BYTES:,} bytes allowed"
            )
        return array.astype(array.dtype.newbyteorder("="), copy=False)


def _instructions(data: bytes) -> Iterator[tuple[str, Any]]:
    """(name, argument) of each instruction up to STOP; refused ones with no argument read."""
    file = io.BytesIO(data)
    name = ""
    while name != "STOP":
        code = file.read(1)
        known = _INSTRUCTIONS.get(code.decode("latin-1"))
        if known is None:
            raise SnapshotError(f"the pickle is cut off or damaged at byte {file.tell():,}")
        name, argument = known.name, None
        try:
            if name == "GLOBAL":  # pickletools would decode escapes, which pickle doesn't
                argument = file.readline().decode()[:-1], file.readline().decode()[:-1]
            elif known.arg is not None and name in _WITH_ARGUMENT:
                argument = known.arg.reader(file)
        except ValueError as error:
            raise SnapshotError(f"the pickle is cut off or damaged: {error}") from error
        yield name, argument


def _advice(module: str) -> str:
    if module.split(".")[0] == "video_retrieval":
        return (
            "This is an older snapshot, of the authors' package video_retrieval: re-save it with "
            "the `__main__` of their ActionRecognitionModel's module, which rewrites these names."
        )
    return "Do not open this file with torch.load: it may run commands."
