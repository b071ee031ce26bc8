"""Fine-tunes movinet_a0_stream_grw on UT-Interaction: trained on set 1, tested on set 2, and back.

    python zoo/ut_interaction.py --videos ut_interaction --weights WEIGHTS

Six two-person actions, 20 clips each (CLASS/setS_seqNN_ID.avi). The weights are a Kinetics-600
MoViNet-A0-Stream in any form that `zoo.load` reads. On two CPU cores a fold takes some two minutes.
"""

import argparse
import re
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf
import tf_keras

from grw_keras import zoo

FRAMES, FPS = 10, 5.0
EPOCHS, BATCH = 15, 4
NAME = re.compile(r"set(?P<set>[12])_seq\d+_\d+\.avi")


def read_frames(path: Path, resize: int, crop: int) -> np.ndarray:
    """All frames at `FPS` frames a second, [n, crop, crop, 3] uint8, evaluated as in the paper."""
    video = cv2.VideoCapture(str(path))
    step = video.get(cv2.CAP_PROP_FPS) / FPS
    frames, margin = [], (resize - crop) // 2
    for index in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT))):
        good, image = video.read()
        if not good:
            break
        if index >= len(frames) * step:
            image = cv2.resize(image, (resize, resize), interpolation=cv2.INTER_AREA)
            image = image[margin : margin + crop, margin : margin + crop]
            frames.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    video.release()
    if not frames:
        raise ValueError(f"No frames in the video {path}")
    return np.stack(frames)


def clip(frames: np.ndarray, start: int) -> np.ndarray:
    """`FRAMES` frames from `start` on, in [0, 1]; a video too short begins again."""
    return frames[np.arange(start, start + FRAMES) % len(frames)].astype(np.float32) / 255


def dataset(videos: list[np.ndarray], labels: list[int], seed: int | None) -> tf.data.Dataset:
    """Batches of one clip of each video: its centre, or with a seed a random one, shuffled."""
    rng = np.random.default_rng(seed)

    def clips():
        order = np.arange(len(videos)) if seed is None else rng.permutation(len(videos))
        for index in order:
            room = max(len(videos[index]) - FRAMES, 0)
            start = room // 2 if seed is None else rng.integers(room + 1)
            yield clip(videos[index], start), labels[index]

    size = videos[0].shape[1]
    shapes = (tf.TensorSpec([FRAMES, size, size, 3]), tf.TensorSpec([], tf.int32))
    return tf.data.Dataset.from_generator(clips, output_signature=shapes).batch(BATCH).prefetch(1)


def run_fold(videos, labels, sets, train_set: str, weights, classes, seed: int) -> float:
    """Accuracy on the other set of a model fine-tuned on `train_set`."""
    tf_keras.utils.set_random_seed(seed)
    train = [i for i, its_set in enumerate(sets) if its_set == train_set]
    test = [i for i, its_set in enumerate(sets) if its_set != train_set]
    model = zoo.load("movinet_a0_stream_grw", weights, num_classes=len(classes), frames=FRAMES)
    model.labels = classes
    model.compile_for_training(steps=EPOCHS * -(-len(train) // BATCH))
    model.fit(
        dataset([videos[i] for i in train], [labels[i] for i in train], seed),
        epochs=EPOCHS,
        verbose=2,
    )
    unseen = dataset([videos[i] for i in test], [labels[i] for i in test], None)
    return model.evaluate(unseen, verbose=0, return_dict=True)["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--weights", required=True, help="file, folder or name of weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    classes = sorted(path.name for path in options.videos.iterdir() if path.is_dir())
    paths = [path for path in sorted(options.videos.glob("*/*.avi")) if NAME.fullmatch(path.name)]
    if not paths:
        parser.error(f"no CLASS/setS_seqNN_ID.avi in {options.videos}")
    sets = [NAME.fullmatch(path.name)["set"] for path in paths]
    labels = [classes.index(path.parent.name) for path in paths]
    videos = [read_frames(path, resize=200, crop=172) for path in paths]
    accuracies = []
    for train_set, test_set in (("1", "2"), ("2", "1")):
        accuracy = run_fold(videos, labels, sets, train_set, options.weights, classes, options.seed)
        accuracies.append(accuracy)
        print(f"trained on set {train_set}, tested on set {test_set}: accuracy {accuracy:.3f}")
    print(f"mean accuracy {np.mean(accuracies):.3f}")


if __name__ == "__main__":
    main()
