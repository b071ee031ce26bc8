"""A flatbuffer run in this process, frame by frame, before it is a file."""

from collections.abc import Iterator, Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from grw_keras.export.conversion import ANSWERS, SIGNATURE


class Runner:
    """A stream, or an embed, model in LiteRT.

    Args:
        flatbuffer: the model.
    """

    def __init__(self, flatbuffer: bytes):
        self._interpreter = Interpreter(model_content=flatbuffer)
        self._run = self._interpreter.get_signature_runner(SIGNATURE)
        self._shapes = {
            name: tuple(detail["shape"]) for name, detail in self._run.get_input_details().items()
        }

    def run(self, clip: np.ndarray) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """The inputs at each frame of a clip [N, S, S, 3], states included, and the answer [n]."""
        states = {
            name: np.zeros(shape, np.float32)
            for name, shape in self._shapes.items()
            if name != "image"
        }
        for frame in clip:
            inputs = {"image": frame[None, None], **states}
            states = self._run(**inputs)
            (answer,) = (states.pop(name) for name in ANSWERS if name in states)
            yield inputs, answer[0]

    def answers(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """The answers [frames, n] to all frames of clips, each a stream of its own."""
        return np.stack([answer for clip in clips for _, answer in self.run(clip)])


class Feeds:
    """The inputs at all frames of clips, made anew each time that they are gone through: with the
    states they would fill the memory."""

    def __init__(self, runner: Runner, clips: Sequence[np.ndarray]):
        self._runner, self._clips = runner, clips

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (inputs for clip in self._clips for inputs, _ in self._runner.run(clip))
