"""int8 files that keep their accuracy: what is quantised how, layer by layer.

Two roads lead to int8. Models with squeeze-excite and hard-swish get int8 weights, rounded by
calibration (`rounding`), in their pointwise convolutions and heads; their activations are quantised
as they come, for a few of them have tails that no fixed range fits. The MoViNets of `_relu6` are
bounded, and most of their backbone is int8 throughout. On both roads the stem and the first two
blocks stay floats: of many pixels and few channels, they hold 3 % of the weights at most, int8
saves them no time (quantising their inputs costs as much), and their errors travel furthest. Stream
states enter and leave as floats, and running means and frame counts, which leave any calibrated
range, stay so.

Reference:
    The kernels' side: dynamic-range and full-integer quantisation of LiteRT,
    https://ai.google.dev/edge/litert/models/post_training_quantization.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

log = logging.getLogger("grw_keras")

BITS = 8
LEAST_SNR_DB = 30.0
SENSITIVITY_FRAMES = 48

Weights = Mapping[str, Affine]
_Operation = qtyping.TFLOperationName
_FLOAT_STAGES = ("stem", "block0", "block1")
_WHY_FLOAT = "of many pixels and few channels: int8 saves no time, and its errors travel furthest"
_DYNAMIC = "CONV_2D"  # matrix products are such convolutions too, see `Layers.matmul`
_STATIC_KERNELS = (_Operation.CONV_2D, _Operation.DEPTHWISE_CONV_2D)
_STATIC_GLUE = (
    *(_Operation.ADD, _Operation.CONCATENATION, _Operation.STRIDED_SLICE),
    _Operation.AVERAGE_POOL_2D,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What int8 in one layer alone does to the answers, and what became of the layer.

    Args:
        layer: its name in the file.
        operation: of TFLite.
        weights: how many it has.
        snr_db: of the answers with this layer alone in int8, dB.
        kept: in the file: `"int8"`, `"int8 weights"` with float activations, or `"float32"`.
        why: the reason.
    """

    layer: str
    operation: str
    weights: int
    snr_db: float
    kept: str
    why: str


def dynamic(flatbuffer: bytes) -> bytes:
    """int8 weights in matrix products and in all but depthwise convolutions; activations are
    quantised as they come.

    Args:
        flatbuffer: a float model.
    """
    work = quantizer.Quantizer(bytearray(flatbuffer))
    _add_dynamic(work, ".*")
    work.add_dynamic_config(".*", _Operation.FULLY_CONNECTED, BITS)  # of clip graphs alone
    return _finished(work)


def dynamic_int8(
    flatbuffer: bytes, rounded: Weights, clips: Sequence[np.ndarray]
) -> tuple[bytes, list[Sensitivity]]:
    """`dynamic`; while the answers keep less than `LEAST_SNR_DB`, the layers that harm most go back
    to float, 1, 2, 4, …, up to half of them.

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

    alone = _each_alone(flatbuffer, clips, lambda layer: quantise([layer]))
    taken = [
        kernel
        for kernel in alone
        if kernel.operation == _DYNAMIC and _stage(kernel.layer) not in _FLOAT_STAGES
    ]
    by_harm = [kernel.layer for kernel in sorted(taken, key=alone.__getitem__)]
    measure = _Measure(flatbuffer, clips)
    for spared in (0, *_doubling(len(by_harm) // 2)):
        model = quantise(by_harm[spared:])
        reached = measure.snr_db(model)
        if reached >= LEAST_SNR_DB:
            break

    def fate(kernel: Kernel) -> tuple[str, str]:
        if _stage(kernel.layer) in _FLOAT_STAGES:
            return "float32", _WHY_FLOAT
        if kernel.operation != _DYNAMIC:
            return "float32", "few weights, and no int8 kernel takes float activations"
        if kernel.layer in by_harm[:spared]:
            return "float32", f"among the {spared} that harm most"
        short = "" if reached >= LEAST_SNR_DB else f", {LEAST_SNR_DB:.0f} were wanted"
        return "int8 weights", f"with these the answers keep {reached:.1f} dB{short}"

    return model, _report(alone, fate)


def static_int8(
    flatbuffer: bytes, rounded: Weights, clips: Sequence[np.ndarray]
) -> tuple[bytes, list[Sensitivity]]:
    """The backbone after its first stages int8 throughout, by ranges that calibration saw; the head
    as in `dynamic`.

    While the answers keep less than `LEAST_SNR_DB`, the int8 stages become `dynamic`, one after the
    other from the first, whose errors travel furthest.

    Args:
        flatbuffer: a float stream or embed model of bounded activations.
        rounded: by layer, its kernel on an int8 grid.
        clips: to calibrate and measure with, each [N, S, S, 3], float32 in [0, 1].

    Returns:
        The model, and a report on each layer.
    """
    kernels = conversion.kernels(flatbuffer)
    stages = list(dict.fromkeys(filter(None, (_stage(kernel.layer) for kernel in kernels))))
    watched = quantizer.Quantizer(bytearray(flatbuffer))
    _add_static(watched, _stages_scope(stages), (*_STATIC_KERNELS, *_STATIC_GLUE))
    with _quiet():
        ranges = watched.calibrate({SIGNATURE: Feeds(Runner(flatbuffer), clips)})

    def quantise(static: Sequence[str]) -> bytes:
        layers = [k.layer for k in kernels if _stage(k.layer) not in _FLOAT_STAGES]
        work = quantizer.Quantizer(bytearray(_with(flatbuffer, rounded, layers)))
        _add_dynamic(work, _scope(*layers))
        if static:
            _add_static(work, _stages_scope(static), (*_STATIC_GLUE, *_STATIC_KERNELS))
        return _finished(work, ranges)

    def alone(layer: str) -> bytes:
        work = quantizer.Quantizer(bytearray(_with(flatbuffer, rounded, [layer])))
        if _stage(layer) is None:
            _add_dynamic(work, _scope(layer))
        else:
            _add_static(work, _scope(layer), _STATIC_KERNELS)
        return _finished(work, ranges)

    measure = _Measure(flatbuffer, clips)
    for first in range(len(_FLOAT_STAGES), len(stages) + 1):
        model = quantise(stages[first:])
        reached = measure.snr_db(model)
        if reached >= LEAST_SNR_DB:
            break

    def fate(kernel: Kernel) -> tuple[str, str]:
        stage = _stage(kernel.layer)
        if stage in _FLOAT_STAGES:
            return "float32", _WHY_FLOAT
        if stage in stages[first:]:
            return "int8", f"with these stages in int8 the answers keep {reached:.1f} dB"
        if kernel.operation == _DYNAMIC:
            return "int8 weights", f"its activations come as floats; {reached:.1f} dB are kept"
        return "float32", f"in {stage}, whose activations are floats: its errors travel furthest"

    return model, _report(_each_alone(flatbuffer, clips, alone), fate)


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


class _Measure:
    """Signal-to-noise of a quantised model's answers against the float model's."""

    def __init__(self, flatbuffer: bytes, clips: Sequence[np.ndarray]):
        self._clips = clips
        self._expected = Runner(flatbuffer).answers(clips)

    def snr_db(self, candidate: bytes) -> float:
        received = Runner(candidate).answers(self._clips)
        return signal_to_noise_db(self._expected, received - self._expected)


def _each_alone(
    flatbuffer: bytes, clips: Sequence[np.ndarray], alone: Callable[[str], bytes]
) -> dict[Kernel, float]:
    """What the answers keep, dB, when `alone(layer)` quantises a layer, for each layer."""
    measure = _Measure(flatbuffer, spread(clips, SENSITIVITY_FRAMES))
    kernels = conversion.kernels(flatbuffer)
    log.info("Measuring what int8 does in each of %d layers alone", len(kernels))
    return {kernel: measure.snr_db(alone(kernel.layer)) for kernel in kernels}


def _report(
    alone: Mapping[Kernel, float], fate: Callable[[Kernel], tuple[str, str]]
) -> list[Sensitivity]:
    rows = []
    for kernel, snr_db in alone.items():
        kept, why = fate(kernel)
        rows.append(Sensitivity(**kernel._asdict(), snr_db=snr_db, kept=kept, why=why))
    return rows


def _doubling(most: int) -> Iterator[int]:
    """1, 2, 4, … up to `most`."""
    return itertools.takewhile(lambda n: n <= most, (2**i for i in itertools.count()))


def _add_dynamic(work: quantizer.Quantizer, scope: str) -> None:
    work.add_dynamic_config(scope, _Operation.CONV_2D, BITS)


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


def _stage(layer: str) -> str | None:
    """The stage of the backbone that a layer is of: stem, block0, …, head; None for the rest."""
    found = re.fullmatch(r"(stem|head|block\d+)(_layer\d+/\w+)?", layer)
    return found and found[1]


def _stages_scope(stages: Sequence[str]) -> str:
    """A pattern of all operations of stages, those between the layers too."""
    return f"(^|;)({'|'.join(stages)})[_/]"


def _scope(*layers: str) -> str:
    """A pattern of the operations that stand under the names of layers."""
    return f"(^|;)({'|'.join(map(re.escape, layers))})/"


@contextlib.contextmanager
def _quiet():
    """The quantiser prints progress as it goes."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
