"""Airplanes as a data set of TFDS: import this module, then `tfds.load("airplanes")`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from grw_keras.data import airplanes

SIZE = 64


class Airplanes(tfds.core.GeneratorBasedBuilder):
    """`grw_keras.data.airplanes`, drawn when prepared: `video` [10, 64, 64, 3], `label`."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look there for checksums of downloads, with a library (importlib_resources) that
    # it does not ask for: TFDS 4.9.10.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (airplanes.FRAMES, SIZE, SIZE, 3)
        features: dict[str, Any] = {
            "video": tfds.features.Video(shape=shape),
            "label": tfds.features.ClassLabel(names=list(airplanes.CLASSES)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Model airplanes that yaw, pitch or roll from a random pose: after the "
            "warm-up data set of Goldman, Giryes and Satyanarayanan, NeurIPS 2025, drawn anew.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict({"fps": airplanes.FPS}),
            supervised_keys=("video", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in airplanes.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(airplanes.SPLITS[split]):
            motion = airplanes.motion(split, index)
            video: np.ndarray = airplanes.draw(motion, airplanes.FRAMES, SIZE)
            yield index, {"video": video, "label": motion.axis}
