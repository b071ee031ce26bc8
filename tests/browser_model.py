"""What the browser page is given: a real stream file, frames with their answers, broken files."""

import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from grw_keras.data import video
from grw_keras.lite import StreamSession
from tests import lite_files

CLIP = "videos/clips/arm_wrestling.mp4"
# One that the model wavers over: every slip shows in the probabilities.
UNCLEAR_CLIP = "videos/ut_interaction/hand_shaking/set1_seq01_004.avi"
_WEIGHTS, _LABELS = "movinet_a0_stream_k600_int8.tflite", "kinetics600_labels.txt"


def export(shared: Path, path: Path) -> Path:
    """A float32 A0-Stream with real Kinetics-600 weights, in the form of Google's int8 file."""
    from grw_keras import zoo
    from grw_keras.export import to_tflite

    model = zoo.load("movinet_a0_stream_relu6", weights=shared / "weights" / _WEIGHTS)
    model.labels = (shared / "weights" / _LABELS).read_text().splitlines()
    return to_tflite(model, path).path


def write_frames(shared: Path, folder: Path, count: int = 11) -> np.ndarray:
    """Writes frames of the unclear clip, 5 a second, as PNG files, and gives them.

    Their names have no leading zeros: sorted as text, they come in another order.
    """
    frames = video.read_frames(shared / UNCLEAR_CLIP, np.arange(count) / 5)
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{number}.png")
    return frames


def answers(model: Path, frames: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """Probabilities [N, classes] of the Python client."""
    session = StreamSession(model, smoothing=smoothing)
    return np.array([session.step(frame) for frame in frames])


def write_bad_files(shared: Path, model: Path, folder: Path) -> None:
    """Files that the page must refuse, by what is wrong with them."""
    folder.mkdir()
    whole = model.read_bytes()
    with zipfile.ZipFile(model) as archive:
        about = json.loads(archive.read("grw_keras.json"))
        graph = whole[: min(entry.header_offset for entry in archive.infolist())]

    def write(name: str, **changes) -> None:
        lite_files.write(folder / f"{name}.tflite", graph, about | changes)

    (folder / "text.tflite").write_text("a model, in words")
    (folder / "truncated.tflite").write_bytes(whole[: len(whole) // 2])
    (folder / "googles.tflite").write_bytes((shared / "weights" / _WEIGHTS).read_bytes())
    lite_files.write(folder / "damaged.tflite", graph[: len(graph) // 2], about)
    write("embed", kind="embed")
    write("version", format_version=2)
    write("crop", crop_px=160)
    write("classes", num_classes=599, labels=None)
    write("labels", labels=about["labels"][:-1])
