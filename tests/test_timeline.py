"""What a model says of one video, whole and as it goes on."""

import numpy as np
import pytest
import tensorflow as tf

from grw_keras import zoo
from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.scan import scan
from grw_keras.data.stores import VideoStore
from grw_keras.data.transforms import evaluation_clip
from grw_keras.data.video import BadVideoError, read_frames
from grw_keras.evaluation import timeline
from grw_keras.evaluation.evaluating import sampling_of
from grw_keras.evaluation.predictions import Predictor
from grw_keras.evaluation.timeline import classify_video, probabilities_over_time
from grw_keras.models.streaming import StreamSession
from grw_keras.zoo import registry
from tests import video_files
from tests.zoo_helpers import SIZE, randomize

LENGTHS = {"long": 45, "short": 5}  # frames at 10 fps: 22 and 2 of the grid


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos of changing colours."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    paths = {}
    for name, count in LENGTHS.items():
        colours = rng.integers(256, size=(count, 1, 4, 3)).repeat(16, 2).repeat(48, 1)
        pictures = list(colours.astype(np.uint8))
        paths[name] = video_files.write(folder / f"{name}.mp4", frames=pictures, fps=10)
    return paths


@pytest.fixture(scope="module")
def streaming():
    return randomize(
        zoo.load("mobilenet_v3_small", weights=None, num_classes=4, frames=6, resolution=SIZE)
    )


def stores(videos, model) -> VideoStore:
    clips = ClipSet(tuple(Clip(str(path), "bow") for path in videos.values()), ("bow",))
    return VideoStore(clips, scan(clips).infos, fps=model.spec.fps, size=model.spec.resize)


class NumberReader:
    """Stands in for a model that can't stream: its logits are sums over the clip's frames."""

    def __init__(self, frames: int):
        self.spec = registry.get("movinet_a0").replace(
            {"frames": frames, "resolution": 16, "fps": 5.0}
        )
        self.clips: list[list[int]] = []

    def __call__(self, clip, mask=None):
        assert clip.shape == (1, self.spec.frames, 16, 16, 3)
        assert float(tf.reduce_max(clip)) <= 1
        numbers = [video_files.number_of(255 * image) for image in clip[0].numpy()]
        self.clips.append(numbers)
        return tf.constant([[sum(numbers) / 100, 0.0]])


@pytest.mark.slow
@pytest.mark.parametrize("short", ["loop", "pad"])
def test_a_video_is_classified_as_its_clip_in_a_data_set_is(videos, streaming, short):
    sampling = sampling_of(streaming.spec, short)
    found = Predictor(streaming).predict(stores(videos, streaming), sampling, 2, processes=0)
    for path, logits in zip(videos.values(), found.logits, strict=True):
        probabilities = classify_video(streaming, path, short=short)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, tf.nn.softmax(logits), rtol=1e-4, atol=1e-5)
    assert np.ptp(found.logits, axis=0).max() > 1e-2


@pytest.mark.slow
def test_a_model_that_streams_answers_after_every_frame(videos, streaming, monkeypatch):
    monkeypatch.setattr(timeline, "CHUNK_FRAMES", 5)
    store = stores(videos, streaming)
    # The session resizes by other means, so it is given the crop.
    top = (streaming.spec.resize - SIZE) // 2
    crop = slice(top, top + SIZE)
    frames = store.read(0, np.arange(store.available(0)))[:, crop, crop]
    session = StreamSession(streaming)
    wanted = [session.step(frame) for frame in frames]
    times_s, found = probabilities_over_time(streaming, videos["long"])
    np.testing.assert_allclose(times_s, np.arange(LENGTHS["long"] // 2) / 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert np.ptp(found, axis=0).max() > 1e-3


@pytest.mark.parametrize(
    ("count", "frames", "clips", "times_s"),
    [
        # At 10 fps, seen at 5: every other picture. Answers at 5, 10, … frames, and at the end.
        (
            25,
            4,
            [[2, 4, 6, 8], [12, 14, 16, 18], [16, 18, 20, 22]],
            [0.8, 1.8, 2.2],
        ),
        (20, 7, [[0, 2, 4, 6, 8, 0, 2], [6, 8, 10, 12, 14, 16, 18]], [0.8, 1.8]),
        (4, 3, [[0, 2, 0]], [0.2]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 5, 7, 512])
def test_other_models_answer_every_second_by_the_clip_that_ends_then(
    tmp_path, monkeypatch, count, frames, clips, times_s, chunk
):
    monkeypatch.setattr(timeline, "CHUNK_FRAMES", chunk)
    path = video_files.write(tmp_path / "v.mp4", frames=count, fps=10)
    model = NumberReader(frames)
    times, found = probabilities_over_time(model, path)
    # What is cut off a picture changes the number that is read from it, in both alike.
    assert [len(clip) for clip in model.clips] == [frames] * len(clips)
    np.testing.assert_allclose(times, times_s)
    reference = NumberReader(frames)
    for wanted, row in zip(clips, found, strict=True):
        images = np.stack([shown(number, path) for number in wanted])
        logits = reference(tf.constant(images[None] / np.float32(255)))
        np.testing.assert_allclose(row, tf.nn.softmax(logits[0]), rtol=1e-5)
    assert model.clips == reference.clips


@pytest.mark.parametrize(("chunk", "wanted"), [(512, [22]), (20, [20, 2]), (11, [11, 11])])
@pytest.mark.parametrize("streams", [True, False])
def test_a_video_is_opened_once_for_many_frames(
    videos, streaming, monkeypatch, chunk, wanted, streams
):
    read = []

    def counted(path, times_s, size):
        read.extend(times_s)
        opened.append(len(times_s))
        return read_frames(path, times_s, size)

    opened: list[int] = []
    assert timeline.CHUNK_FRAMES == 512
    monkeypatch.setattr(timeline, "CHUNK_FRAMES", chunk)
    monkeypatch.setattr(timeline, "read_frames", counted)
    probabilities_over_time(streaming if streams else NumberReader(8), videos["long"])
    assert opened == wanted
    np.testing.assert_allclose(read, np.arange(22) / 5)


def shown(number: int, path) -> np.ndarray:
    """A picture of a video at 10 fps, resized and cut as the model sees it."""
    size = NumberReader(1).spec.resize
    return evaluation_clip(read_frames(path, [number / 10], size), 16)[0]


@pytest.mark.parametrize("ask", [classify_video, probabilities_over_time])
def test_a_file_that_is_no_video_is_told(tmp_path, streaming, ask):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(BadVideoError, match=r"v\.mp4"):
        ask(streaming, path)
