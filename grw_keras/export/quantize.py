"""int8 files that keep their accuracy: what is quantised how, layer by layer.

Two roads lead to int8. Models with squeeze-excite and hard-swish get int8 weights, rounded by
calibration (`rounding`), in their pointwise convolutions and heads; their activations are quantised
as they come, for a few of them have tails that no fixed range fits. The MoViNets of `_relu6` are
bounded, and their backbone is int8 throughout. Stream states enter and leave as floats on both
roads, and running means and frame counts, which leave any calibrated range, stay floats.

Reference:
    The kernels' side: dynamic-range and full-integer quantisation of LiteRT,
    https://ai.google.dev/edge/litert/models/post_training_quantization.
"""

import contextlib
import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_quantizer import qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName

from grw_keras.export.clips import first_frames
from grw_keras.export.conversion import SIGNATURE, Kernel, kernels
from grw_keras.export.running import Runner
from grw_keras.export.verify import LEAST_SNR_DB, signal_to_noise_db

BITS = 8
# What the answers of a dynamically quantised file must keep of themselves. A bounded model in int8
# throughout has less to lose: it keeps what `verify` asks for.
DYNAMIC_LEAST_SNR_DB = 30.0
SELECTION_FRAMES, SENSITIVITY_FRAMES = 120, 24

_Operation = qtyping.TFLOperationName
_DYNAMIC = {"CONV_2D": _Operation.CONV_2D, "FULLY_CONNECTED": _Operation.FULLY_CONNECTED}
_STATIC = (
    *(_Operation.CONV_2D, _Operation.DEPTHWISE_CONV_2D, _Operation.AVERAGE_POOL_2D),
    *(_Operation.ADD, _Operation.MUL, _Operation.CONCATENATION, _Operation.STRIDED_SLICE),
)
_BACKBONE = r"(^|;)(stem|block\d+_layer\d+/\w+|head)/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What int8 in one layer alone does to the answers, and what became of the layer.

    Args:
        layer: its name in the file.
        operation: of TFLite.
        weights: how many it has.
        snr_db: of the answers with this layer alone in int8, dB.
        kept: `"int8"` or `"float32"`, in the file.
        why: the reason.
    """

    layer: str
    operation: str
    weights: int
    snr_db: float
    kept: str
    why: str


def dynamic(flatbuffer: bytes, without: Iterable[str] = ()) -> bytes:
    """int8 weights in convolutions and matrix products, activations quantised as they come.

    Args:
        flatbuffer: a float model.
        without: names of layers to leave in float.
    """
    work = quantizer.Quantizer(bytearray(flatbuffer))
    for operation in _DYNAMIC.values():
        work.add_dynamic_config(".*", operation, BITS)
    return _finished(work, without)


def dynamic_int8(flatbuffer: bytes, clips: Sequence[np.ndarray]) -> tuple[bytes, list[Sensitivity]]:
    """`dynamic`, with the most sensitive layers in float where the answers need that.

    Args:
        flatbuffer: a float stream or embed model, its kernels rounded.
        clips: to measure with, each [N, S, S, 3], float32 in [0, 1].

    Returns:
        The model, and a report on each layer.
    """

    def alone(layer: Kernel) -> bytes:
        work = quantizer.Quantizer(bytearray(flatbuffer))
        if layer.operation in _DYNAMIC:
            work.add_dynamic_config(_scope(layer.layer), _DYNAMIC[layer.operation], BITS)
        else:
            work.add_weight_only_config(_scope(layer.layer), _Operation.DEPTHWISE_CONV_2D, BITS)
        return _finished(work)

    return _selected(
        flatbuffer,
        clips,
        lambda without: dynamic(flatbuffer, without),
        alone,
        lambda layer: layer.operation in _DYNAMIC,
        DYNAMIC_LEAST_SNR_DB,
    )


def static_int8(flatbuffer: bytes, clips: Sequence[np.ndarray]) -> tuple[bytes, list[Sensitivity]]:
    """The backbone int8 throughout, by ranges that calibration saw; the head as in `dynamic`.

    Args:
        flatbuffer: a float stream or embed model of bounded activations.
        clips: to calibrate and measure with, each [N, S, S, 3], float32 in [0, 1].

    Returns:
        The model, and a report on each layer.
    """
    runner = Runner(flatbuffer)
    few = first_frames(clips, SELECTION_FRAMES)
    everything = _static(flatbuffer, _BACKBONE)
    with _quiet():
        ranges = everything.calibrate(
            {SIGNATURE: (inputs for clip in few for inputs, _ in runner.feeds(clip))}
        )

    def quantise(without: Sequence[str]) -> bytes:
        work = _static(flatbuffer, _BACKBONE)
        work.add_dynamic_config(".*", _Operation.FULLY_CONNECTED, BITS)
        return _finished(work, without, ranges)

    def alone(layer: Kernel) -> bytes:
        if layer.operation == "FULLY_CONNECTED":
            work = quantizer.Quantizer(bytearray(flatbuffer))
            work.add_dynamic_config(_scope(layer.layer), _Operation.FULLY_CONNECTED, BITS)
            return _finished(work)
        return _finished(_static(flatbuffer, _scope(layer.layer)), (), ranges)

    least = LEAST_SNR_DB["int8"]
    return _selected(flatbuffer, clips, quantise, alone, lambda layer: True, least)


def write_report(path: Path, report: Sequence[Sensitivity]) -> None:
    """Writes the layers' rows as CSV, the most sensitive first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(field.name for field in dataclasses.fields(Sensitivity))
        for row in sorted(report, key=lambda row: row.snr_db):
            values = dataclasses.asdict(row) | {"snr_db": f"{row.snr_db:.1f}"}
            rows.writerow(values.values())


def _selected(
    flatbuffer: bytes,
    clips: Sequence[np.ndarray],
    quantise: Callable[[Sequence[str]], bytes],
    alone: Callable[[Kernel], bytes],
    takes: Callable[[Kernel], bool],
    least_snr_db: float,
) -> tuple[bytes, list[Sensitivity]]:
    """Quantises, with the fewest layers in float with which the answers keep `least_snr_db`.

    Args:
        flatbuffer: the float model.
        clips: to measure with.
        quantise: the model in int8 but for the layers of these names.
        alone: the model with one layer alone in int8.
        takes: whether `quantise` would have a layer in int8.
        least_snr_db: that the answers must keep; where they can't, no layer that `quantise` takes
            is left.
    """
    few, more = (first_frames(clips, n) for n in (SENSITIVITY_FRAMES, SELECTION_FRAMES))
    expected_few, expected = (Runner(flatbuffer).answers(c) for c in (few, more))

    def snr_db(candidate: bytes, frames, answers) -> float:
        return signal_to_noise_db(answers, Runner(candidate).answers(frames) - answers)

    each = {layer: snr_db(alone(layer), few, expected_few) for layer in kernels(flatbuffer)}
    by_harm = [layer.layer for layer in sorted(filter(takes, each), key=each.__getitem__)]
    for count in range(len(by_harm) + 1):
        spared = by_harm[:count]
        model = quantise(spared)
        reached = snr_db(model, more, expected)
        if reached >= least_snr_db:
            break

    def fate(layer: Kernel) -> tuple[str, str]:
        if not takes(layer):
            return "float32", "few weights, and no int8 kernel takes float activations"
        if layer.layer in spared:
            return "float32", f"with fewer layers in float the answers fall below {least_snr_db} dB"
        return "int8", f"with these layers in int8 the answers keep {reached:.1f} dB"

    report = []
    for layer, harm in each.items():
        kept, why = fate(layer)
        report.append(Sensitivity(**layer._asdict(), snr_db=harm, kept=kept, why=why))
    return model, report


def _static(flatbuffer: bytes, scope: str) -> quantizer.Quantizer:
    """A quantiser of the backbone's operations in a scope; inputs and outputs stay float."""
    work = quantizer.Quantizer(bytearray(flatbuffer))
    for operation in _STATIC:
        work.add_static_config(scope, operation, BITS, BITS)
    for side in (_Operation.INPUT, _Operation.OUTPUT):
        _leave(work, ".*", side)
    return work


def _finished(work: quantizer.Quantizer, without: Iterable[str] = (), ranges: Any = None) -> bytes:
    for name in without:
        _leave(work, _scope(name), _Operation.ALL_SUPPORTED)
    with _quiet():
        return bytes(work.quantize(ranges, enable_progress_report=False).quantized_model)


def _leave(work: quantizer.Quantizer, scope: str, operation: _Operation) -> None:
    work.update_quantization_recipe(scope, operation, algorithm_key=AlgorithmName.NO_QUANTIZE)


def _scope(layer: str) -> str:
    """A pattern of the operations that stand under a layer's name."""
    return f"(^|;){re.escape(layer)}/"


@contextlib.contextmanager
def _quiet():
    """The quantiser prints progress as it goes."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
