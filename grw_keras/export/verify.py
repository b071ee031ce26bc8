"""The gate: an exported file must answer as the Keras model does."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from grw_keras.export.conversion import SIGNATURE
from grw_keras.lite import StreamSession, read_description
from grw_keras.models.classifier import VideoClassifier

# Least signal-to-noise of the logits, by quantisation, dB: float files are off by rounding alone;
# below 20 dB in int8, fine-tuned models lost clips in our trials.
LEAST_SNR_DB = {None: 60.0, "float16": 40.0, "dynamic": 15.0, "int8": 20.0}


class VerificationError(ValueError):
    """A file answers otherwise than its model; `report` says by how much."""

    def __init__(self, message: str, report: "Report"):
        super().__init__(message)
        self.report = report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """How a file's logits compare with the Keras model's over streamed clips.

    Args:
        clips: number of clips, each a stream of its own.
        frames: number of answers compared.
        largest_difference: of any logit.
        logits_range: of the Keras model's, largest less smallest over all answers.
        snr_db: power of the Keras model's logits, each class less its mean over the answers,
            over that of the differences, dB; infinite where there are none.
        top1_agreement: share of answers whose likeliest class is the same, in [0, 1].
    """

    clips: int
    frames: int
    largest_difference: float
    logits_range: float
    snr_db: float
    top1_agreement: float

    def __str__(self) -> str:
        return (
            f"{self.frames} frames of {self.clips} clips: largest difference "
            f"{self.largest_difference:.2g} of a range of {self.logits_range:.3g}, signal-to-noise "
            f"{self.snr_db:.1f} dB, same top-1 {self.top1_agreement:.1%}"
        )


def verify(model: VideoClassifier, path: str | Path, clips: Sequence[np.ndarray]) -> Report:
    """Streams clips through a model and a file of it.

    Args:
        model: that the file was exported from.
        path: of a `stream`, an `embed` or a `clip` file.
        clips: each [N, S, S, 3], float32 in [0, 1], S the model's resolution; for a `clip` file
            they begin again, or are cut, to its length.
    """
    if read_description(path).kind == "clip":
        clips = [np.resize(clip, (model.spec.frames, *clip.shape[1:])) for clip in clips]
        return compare([model(clip[None]).numpy() for clip in clips], _of_whole_clips(path, clips))
    return compare(streamed_by_keras(model, clips), streamed_by_file(path, clips))


def streamed_by_keras(model: VideoClassifier, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The model's logits [N, classes] after each frame of each clip."""
    step = tf.function(model.step)
    answers = []
    for clip in clips:
        states, logits = model.initial_states(), []
        for frame in clip:
            answer, states = step(tf.constant(frame[None, None]), states)
            logits.append(answer.numpy()[0])
        answers.append(np.stack(logits))
    return answers


def streamed_by_file(path: str | Path, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A file's logits [N, classes] after each frame of each clip."""
    session = StreamSession(path)

    def logits(frame: np.ndarray) -> np.ndarray:
        session.step(frame)
        assert session.logits is not None  # after a step
        return session.logits

    answers = []
    for clip in clips:
        session.reset()
        answers.append(np.stack([logits(frame) for frame in clip]))
    return answers


def _of_whole_clips(path: str | Path, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    run = Interpreter(str(path)).get_signature_runner(SIGNATURE)
    return [run(clip=clip[None])["logits"] for clip in clips]


def compare(expected: Sequence[np.ndarray], received: Sequence[np.ndarray]) -> Report:
    """The report of two lists of logits [N, classes]."""
    wanted, got = np.concatenate(expected), np.concatenate(received)
    difference = got.astype(np.float64) - wanted
    return Report(
        clips=len(expected),
        frames=len(wanted),
        largest_difference=float(np.max(np.abs(difference))),
        logits_range=float(np.ptp(wanted)),
        snr_db=signal_to_noise_db(wanted, difference),
        top1_agreement=float(np.mean(wanted.argmax(-1) == got.argmax(-1))),
    )


def signal_to_noise_db(signal: np.ndarray, noise: np.ndarray) -> float:
    """Power of a signal [n, channels] over a noise's, dB; infinite without noise.

    The signal is each channel less its mean over the n, or, where n is 1, less the channels' mean.
    """
    power = np.mean(np.square(noise, dtype=np.float64))
    if power == 0:
        return math.inf
    axis = 0 if len(signal) > 1 else 1
    return float(10 * np.log10(np.mean(np.var(signal.astype(np.float64), axis=axis)) / power))


def require(report: Report, quantization: str | None) -> None:
    """Raises a VerificationError where a report falls short of `LEAST_SNR_DB`."""
    least = LEAST_SNR_DB[quantization]
    if not report.snr_db >= least:
        raise VerificationError(
            f"The file answers otherwise than the model: at least {least:.0f} dB are wanted. "
            "Give calibration clips like those that the model will see, another `quantization`, "
            f"or force=True to write it all the same. Received: {report}",
            report,
        )
