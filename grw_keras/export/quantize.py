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
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_quantizer import qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName

from grw_keras.export import conversion
from grw_keras.export.clips import spread
from grw_keras.export.conversion import SIGNATURE, Kernel
from grw_keras.export.layers import Affine
from grw_keras.export.running import Feeds, Runner
from grw_keras.export.verify import signal_to_noise_db

BITS = 8
LEAST_SNR_DB, WORTH_DB = 30.0, 1.0
SELECTION_FRAMES, SENSITIVITY_FRAMES = 120, 48

Weights = Mapping[str, Affine]
_Operation = qtyping.TFLOperationName
_DYNAMIC = {"CONV_2D": _Operation.CONV_2D, "FULLY_CONNECTED": _Operation.FULLY_CONNECTED}
_STATIC_KERNELS = (_Operation.CONV_2D, _Operation.DEPTHWISE_CONV_2D)
_STATIC_GLUE = (
    *(_Operation.ADD, _Operation.CONCATENATION, _Operation.STRIDED_SLICE),
    _Operation.AVERAGE_POOL_2D,
)
_BACKBONE = r"(stem|block\d+_layer\d+/\w+|head)"


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


def dynamic(flatbuffer: bytes) -> bytes:
    """int8 weights in convolutions and matrix products, activations quantised as they come.

    Args:
        flatbuffer: a float model.
    """
    work = quantizer.Quantizer(bytearray(flatbuffer))
    _add_dynamic(work, ".*")
    return _finished(work)


def dynamic_int8(
    flatbuffer: bytes, rounded: Weights, clips: Sequence[np.ndarray]
) -> tuple[bytes, list[Sensitivity]]:
    """`dynamic`, with the most sensitive layers in float where the answers need that.

    Args:
        flatbuffer: a float stream or embed model.
        rounded: by layer, its kernel on an int8 grid.
        clips: to measure with, each [N, S, S, 3], float32 in [0, 1].

    Returns:
        The model, and a report on each layer.
    """

    def quantise(layers: Sequence[str]) -> bytes:
        work = quantizer.Quantizer(bytearray(_with(flatbuffer, rounded, layers)))
        _add_dynamic(work, _scope(*layers))
        work.add_weight_only_config(_scope(*layers), _Operation.DEPTHWISE_CONV_2D, BITS)
        return _finished(work)

    return _selected(
        flatbuffer,
        clips,
        quantise,
        alone=lambda layer: quantise([layer]),
        takes=lambda kernel: kernel.operation in _DYNAMIC,
    )


def static_int8(
    flatbuffer: bytes, rounded: Weights, clips: Sequence[np.ndarray]
) -> tuple[bytes, list[Sensitivity]]:
    """The backbone int8 throughout, by ranges that calibration saw; the head as in `dynamic`.

    Args:
        flatbuffer: a float stream or embed model of bounded activations.
        rounded: by layer, its kernel on an int8 grid.
        clips: to calibrate and measure with, each [N, S, S, 3], float32 in [0, 1].

    Returns:
        The model, and a report on each layer.
    """
    backbone = f"(^|;){_BACKBONE}/"
    watched = quantizer.Quantizer(bytearray(flatbuffer))
    _add_static(watched, backbone, (*_STATIC_KERNELS, *_STATIC_GLUE))
    feeds = Feeds(Runner(flatbuffer), spread(clips, SELECTION_FRAMES))
    with _quiet():
        ranges = watched.calibrate({SIGNATURE: feeds})

    def quantise(layers: Sequence[str], glue: str | None = backbone) -> bytes:
        work = quantizer.Quantizer(bytearray(_with(flatbuffer, rounded, layers)))
        if glue is not None:
            _add_static(work, glue, _STATIC_GLUE)
        _add_static(work, _scope(*filter(_of_backbone, layers)), _STATIC_KERNELS)
        _add_dynamic(work, _scope(*itertools.filterfalse(_of_backbone, layers)))
        return _finished(work, ranges)

    return _selected(
        flatbuffer,
        clips,
        quantise,
        alone=lambda layer: quantise([layer], glue=None),
        takes=lambda kernel: True,
    )


def with_rounded(flatbuffer: bytes, rounded: Weights) -> bytes:
    """`dynamic` of a float model with its kernels on their int8 grids."""
    return dynamic(conversion.with_weights(flatbuffer, rounded))


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
    *,
    alone: Callable[[str], bytes],
    takes: Callable[[Kernel], bool],
) -> tuple[bytes, list[Sensitivity]]:
    """Quantises; while the answers keep less than `LEAST_SNR_DB`, the layer that harms most goes
    back to float, if that gains `WORTH_DB`.

    Args:
        flatbuffer: the float model.
        clips: to measure with.
        quantise: the model with layers of these names in int8, the others in float.
        alone: the model with one layer in int8.
        takes: whether a layer may be in int8.
    """
    few, more = (spread(clips, n) for n in (SENSITIVITY_FRAMES, SELECTION_FRAMES))
    expected_few, expected = (Runner(flatbuffer).answers(c) for c in (few, more))

    def snr_db(candidate: bytes, frames, answers) -> float:
        return signal_to_noise_db(answers, Runner(candidate).answers(frames) - answers)

    each = {
        kernel: snr_db(alone(kernel.layer), few, expected_few)
        for kernel in conversion.kernels(flatbuffer)
    }
    by_harm = [kernel.layer for kernel in sorted(filter(takes, each), key=each.__getitem__)]
    spared, model = 0, quantise(by_harm)
    reached = snr_db(model, more, expected)
    while reached < LEAST_SNR_DB and spared < len(by_harm) - 1:
        candidate = quantise(by_harm[spared + 1 :])
        gained = snr_db(candidate, more, expected)
        if gained < reached + WORTH_DB:
            break
        spared, model, reached = spared + 1, candidate, gained

    def fate(kernel: Kernel) -> tuple[str, str]:
        if not takes(kernel):
            return "float32", "few weights, and no int8 kernel takes float activations"
        if kernel.layer in by_harm[:spared]:
            return "float32", f"among the {spared} that harm most: float gains {WORTH_DB} dB or more"
        return "int8", f"with these layers in int8 the answers keep {reached:.1f} dB"

    report = []
    for kernel, harm in each.items():
        kept, why = fate(kernel)
        report.append(Sensitivity(**kernel._asdict(), snr_db=harm, kept=kept, why=why))
    return model, report


def _add_dynamic(work: quantizer.Quantizer, scope: str) -> None:
    for operation in _DYNAMIC.values():
        work.add_dynamic_config(scope, operation, BITS)


def _add_static(work: quantizer.Quantizer, scope: str, operations: Iterable[Any]) -> None:
    """Static int8 of operations in a scope; the file's inputs and outputs stay float."""
    for operation in operations:
        work.add_static_config(scope, operation, BITS, BITS)
    for side in (_Operation.INPUT, _Operation.OUTPUT):
        work.update_quantization_recipe(".*", side, algorithm_key=AlgorithmName.NO_QUANTIZE)


def _finished(work: quantizer.Quantizer, ranges: Any = None) -> bytes:
    with _quiet():
        return bytes(work.quantize(ranges, enable_progress_report=False).quantized_model)


def _with(flatbuffer: bytes, rounded: Weights, layers: Iterable[str]) -> bytes:
    chosen = {layer: rounded[layer] for layer in layers if layer in rounded}
    return conversion.with_weights(flatbuffer, chosen)


def _of_backbone(layer: str) -> bool:
    return re.fullmatch(_BACKBONE, layer) is not None


def _scope(*layers: str) -> str:
    """A pattern of the operations that stand under the names of layers."""
    return f"(^|;)({'|'.join(map(re.escape, layers))})/" if layers else "^$"


@contextlib.contextmanager
def _quiet():
    """The quantiser prints progress as it goes."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
