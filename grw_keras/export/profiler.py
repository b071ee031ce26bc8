"""LiteRT's profiler, run as a program: `python -m grw_keras.export.profiler FILE THREADS FRAMES`.

Only LiteRT's CompiledModel has a profiler, and only for C, so this calls `libLiteRt.so` of
ai-edge-litert. It is a process of its own, for in other versions of the library the functions may
differ, and nothing is freed before its end.
"""

import ctypes
import json
import sys
from pathlib import Path

import ai_edge_litert
import numpy as np

BUILT_IN, DELEGATED = 2, 8  # events: LiteRtProfilerEventType of litert/c/litert_profiler_event.h
_WARMUP = 5
_CPU = 1  # kLiteRtHwAcceleratorCpu of litert/c/litert_common.h
_OPTIONS = {"runtime_options_string": "enable_profiling = true", "xnnpack": "num_threads = {}"}

_leave = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
    lambda payload: None
)  # the destructor: Python owns them


class _Event(ctypes.Structure):
    """`ProfiledEventData` of litert/c/litert_profiler_event.h."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("index", ctypes.c_uint64),
        ("subgraph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )


class _CompiledModel:
    """A file under LiteRT's profiler, fed with zeros."""

    def __init__(self, path: str, threads: int):
        library = Path(ai_edge_litert.__file__).with_name("libLiteRt.so")
        self._library = ctypes.CDLL(str(library))
        environment = self._made("CreateEnvironment", 0, None)
        model = self._made("CreateModelFromFile", environment, path.encode())
        options = self._made("CreateOptions")
        self._do("SetOptionsHardwareAccelerators", options, _CPU)
        self._payloads = [
            (name.encode(), ctypes.create_string_buffer(text.format(threads).encode()))
            for name, text in _OPTIONS.items()
        ]
        for name, payload in self._payloads:
            option = self._made("CreateOpaqueOptions", name, payload, _leave)
            self._do("AddOpaqueOptions", options, option)
        self._model = self._made("CreateCompiledModel", environment, model, options)
        self._profiler = self._made("CompiledModelGetProfiler", self._model)
        signature = self._made("GetModelSignature", model, ctypes.c_size_t(0))
        self._inputs = self._buffers("Input", environment, signature)
        self._outputs = self._buffers("Output", environment, signature)

    def events(self) -> list[_Event]:
        """Runs a frame; what the profiler saw of it."""
        for name in ("ResetProfiler", "StartProfiler"):
            self._do(name, self._profiler)
        inputs, outputs = ((ctypes.c_size_t(len(x)), x) for x in (self._inputs, self._outputs))
        self._do("RunCompiledModel", self._model, ctypes.c_size_t(0), *inputs, *outputs)
        self._do("StopProfiler", self._profiler)
        count = ctypes.c_int()
        self._do("GetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        self._do("GetProfilerEvents", self._profiler, count, events)
        return list(events)

    def _buffers(self, side: str, environment, signature) -> ctypes.Array:
        """Zeros for all inputs, or room for all outputs."""
        count = ctypes.c_size_t()
        self._do(f"GetNumSignature{side}s", signature, ctypes.byref(count))
        buffers = (ctypes.c_void_p * count.value)()
        for i in range(count.value):
            index, kind = ctypes.c_size_t(i), ctypes.create_string_buffer(256)  # 72 are needed
            tensor = self._made(f"GetSignature{side}TensorByIndex", signature, index)
            self._do("GetRankedTensorType", tensor, kind)
            needs = self._made(
                f"GetCompiledModel{side}BufferRequirements", self._model, ctypes.c_size_t(0), index
            )
            buffer = self._made(
                "CreateManagedTensorBufferFromRequirements", environment, kind, needs
            )
            self._do("ClearTensorBuffer", buffer)
            buffers[i] = buffer.value
        return buffers

    def _made(self, name: str, *arguments) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._do(name, *arguments, ctypes.byref(handle))
        return handle

    def _do(self, name: str, *arguments) -> None:
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status:
            raise RuntimeError(f"LiteRt{name} must give 0. Received: {status}")


def _main(path: str, threads: str, frames: str) -> None:
    """Prints the median time of a frame, and [type, kind, index, median time] of its events."""
    model = _CompiledModel(path, int(threads))
    runs = [model.events() for _ in range(_WARMUP + int(frames))][_WARMUP:]
    ms = np.median([[event.elapsed_us / 1e3 for event in run] for run in runs], axis=0)
    whole, *_ = (time for event, time in zip(runs[0], ms, strict=True) if event.tag == b"Invoke")
    operations = [
        (event.type, event.tag.decode(), event.index, time)
        for event, time in zip(runs[0], ms, strict=True)
        if event.type in (BUILT_IN, DELEGATED)
    ]
    print(json.dumps([whole, operations]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
