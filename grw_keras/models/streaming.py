"""StreamSession: a video classifier that takes one frame at a time."""

import numpy as np
import tensorflow as tf

from grw_keras.lite import prepare_frame


class StreamSession:
    """Runs a model over one stream of frames.

    It uses the model's own layers: training the model further changes what the session answers.
    The first step takes some seconds longer, for it is traced then.

    Args:
        model: a `VideoClassifier` that can stream.
        resolution: height and width that the model sees, pixels; default: the spec's.

    Raises:
        ValueError: the model can't stream.
    """

    def __init__(self, model, resolution: int | None = None):
        self.model = model
        self.resolution = model.spec.resolution if resolution is None else resolution
        self._step = tf.function(model.step)
        self.reset()

    def reset(self) -> None:
        """Forgets all frames: what follows is another video."""
        self.frames_seen = 0
        self._states = self.model.initial_states(1, self.resolution)

    def step(self, frame) -> np.ndarray:
        """Probabilities [classes], float32, after one more frame.

        Args:
            frame: [H, W, 3], RGB (OpenCV's are BGR: `frame[..., ::-1]`), uint8, or float with
                pixels in [0, 1], at the spec's `fps`. A frame of another size than the session's
                is resized as evaluation does it, to a square a little larger, and its centre is
                cut out.

        Raises:
            TypeError, ValueError: not such a frame.
        """
        image = prepare_frame(frame, self._resize(), self.resolution)
        logits, self._states = self._step(image, self._states)
        self.frames_seen += 1
        return tf.nn.softmax(logits[0]).numpy()

    def _resize(self) -> int:
        spec = self.model.spec
        return round(self.resolution * spec.resize / spec.resolution)
