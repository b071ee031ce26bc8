"""Videos written again with labels: their frames and times are the source's, the labels on time."""

import logging
from fractions import Fraction

import av
import numpy as np
import pytest

from grw_keras.data.video_file import BadVideoError
from grw_keras.labelled_video import KINDS, draw_labels, write_labelled_video

LABELS = ["hand shaking", "日本 été", "kicking"]
ANSWERS = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
UNEVEN_MS = [0, 40, 80, 200, 240, 400, 520, 560]  # a variable frame rate


def make_video(
    path, times_ms=UNEVEN_MS, width=160, height=120, codec="libx264", sound=False, rate=25
):
    """A video whose frame i < 12 has the grey level 20 i + 20, its upper left quarter white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100 if codec == "gif" else 1000)
        if sound:
            audio = container.add_stream("aac", rate=8000)
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            tone.sample_rate = 8000
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
        for index, time_ms in enumerate(times_ms):
            image = np.full((height, width, 3), 20 * (index % 12) + 20, np.uint8)
            image[: height // 2, : width // 2] = 255
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_for_display(path):
    """Writes into an mp4 that it is to be displayed turned by 90 degrees clockwise."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2
    values = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], ">i4")
    content[matrix : matrix + 36] = values.tobytes()
    path.write_bytes(content)


def read_back(path):
    """Times in seconds and RGB frames of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [float(frame.pts * stream.time_base) for frame in frames]
        return np.array(times), np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


@pytest.mark.parametrize(("suffix", "tick_s"), [(".mp4", 0), (".mkv", 1e-3), (".webm", 1e-3)])
def test_frames_keep_their_times_and_content(tmp_path, suffix, tick_s):
    source = make_video(tmp_path / "source.mp4")
    target = tmp_path / f"target{suffix}"
    assert write_labelled_video(source, target, [0.0], ANSWERS[:1], LABELS) == 8
    times, frames = read_back(target)
    np.testing.assert_allclose(times, np.array(UNEVEN_MS) / 1000, atol=tick_s + 1e-9)
    # The upper right corner is beside the panel and the white quarter.
    levels = frames[:, 5:50, 100:150].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, 20 * np.arange(8) + 20, atol=6)
    assert {path.name for path in tmp_path.iterdir()} == {"source.mp4", target.name}


@pytest.mark.parametrize("suffix", [".avi", ".gif"])
def test_formats_of_coarse_time_keep_all_frames(tmp_path, suffix):
    even_ms = np.arange(10) * 40
    source = make_video(tmp_path / "source.mkv", even_ms)
    write_labelled_video(source, tmp_path / f"t{suffix}", [0.0], ANSWERS[:1], LABELS)
    times, _ = read_back(tmp_path / f"t{suffix}")
    np.testing.assert_allclose(times, even_ms / 1000, atol=1e-9)


@pytest.mark.parametrize(("suffix", "ticks_per_s"), [(".avi", 120), (".gif", 100)])
def test_more_frames_than_ticks_take_no_longer(tmp_path, suffix, ticks_per_s):
    even_ms = np.arange(250) * 4  # 250 frames a second
    source = make_video(tmp_path / "source.mkv", even_ms, 32, 32, rate=250)
    frames = write_labelled_video(source, tmp_path / f"t{suffix}", [0.0], ANSWERS[:1], LABELS)
    times, _ = read_back(tmp_path / f"t{suffix}")
    assert len(times) == frames == pytest.approx(ticks_per_s, abs=2)
    assert times[-1] == pytest.approx(even_ms[-1] / 1000, abs=1.5 / ticks_per_s)


def test_an_answer_is_drawn_from_its_time_on(tmp_path):
    source = make_video(tmp_path / "source.mp4", width=320, height=240)
    target = tmp_path / "target.mp4"
    write_labelled_video(source, target, [0.08, 0.4], ANSWERS, LABELS)
    _, frames = read_back(target)
    # Of the frames at 0, 40, 80 … ms the first two precede every answer.
    for index, frame in enumerate(frames):
        plain = np.full((240, 320, 3), 20 * index + 20, np.uint8)
        plain[:120, :160] = 255
        candidates = [plain, *(draw_labels(plain, LABELS, answer) for answer in ANSWERS)]
        distances = [np.abs(frame.astype(int) - c).mean() for c in candidates]
        assert np.argmin(distances) == (0 if index < 2 else 1 if index < 5 else 2)


def test_a_turned_video_is_written_upright(tmp_path):
    source = make_video(tmp_path / "source.mp4")
    turn_for_display(source)
    write_labelled_video(source, tmp_path / "t.mp4", [9.0], ANSWERS[:1], LABELS)
    _, frames = read_back(tmp_path / "t.mp4")
    assert frames.shape == (8, 160, 120, 3)
    first = frames[0].mean(axis=-1)
    assert first[:70, 70:].mean() > 240  # the white quarter went from upper left to upper right
    assert first[:70, :50].mean() < 40
    assert first[90:].mean() < 40


def test_odd_sizes_become_even(tmp_path):
    source = make_video(tmp_path / "source.gif", [0, 40, 80], 161, 121, "gif")
    write_labelled_video(source, tmp_path / "t.mp4", [0.0], ANSWERS[:1], LABELS)
    times, frames = read_back(tmp_path / "t.mp4")
    assert frames.shape == (3, 122, 162, 3)
    np.testing.assert_allclose(times, [0, 0.04, 0.08], atol=1e-9)


def test_left_out_sound_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "grw_keras"):
        silent, loud = tmp_path / "silent.mp4", tmp_path / "loud.mp4"
        write_labelled_video(make_video(silent), tmp_path / "a.mp4", [], ANSWERS[:0], LABELS)
        assert not caplog.messages
        make_video(loud, sound=True)
        write_labelled_video(loud, tmp_path / "b.mp4", [], ANSWERS[:0], LABELS)
    assert "the sound of" in caplog.text
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_a_real_video_keeps_its_frames_and_times(tmp_path, shared):
    source = shared / "videos" / "clips" / "playing_cricket.gif"
    answers = np.tile(ANSWERS, (8, 1))
    write_labelled_video(source, tmp_path / "t.mp4", np.arange(16) / 5, answers, LABELS)
    before, plain = read_back(source)
    after, drawn = read_back(tmp_path / "t.mp4")
    np.testing.assert_allclose(after, before - before[0], atol=1e-2)
    changed = np.abs(plain.astype(int) - drawn).mean(axis=(0, 3))
    assert changed[:100].mean() < 12
    assert changed[-40:, :60].mean() > 30


def test_labels_are_drawn_in_their_order_with_bars_of_their_length():
    frame = np.full((240, 320, 3), 200, np.uint8)
    drawn = draw_labels(frame, LABELS, np.array([0.25, 0.0, 0.75]))
    assert (frame == 200).all()
    green = (drawn[..., 1] > 130) & (drawn[..., 0] < 60)
    rows = np.nonzero(green.any(axis=1))[0]
    upper, lower = np.split(rows, np.nonzero(np.diff(rows) > 1)[0] + 1)[:2]
    lengths = [green[part].sum(axis=1).max() for part in (upper, lower)]
    assert lengths[0] / lengths[1] == pytest.approx(3, rel=0.15)
    assert (drawn[:150] == 200).all()


def test_different_labels_look_different_also_beyond_ascii():
    frame = np.zeros((240, 320, 3), np.uint8)
    answer = np.array([1.0])
    drawn = [draw_labels(frame, [label], answer) for label in ("été", "ete", "Größe", "λx")]
    for index, image in enumerate(drawn):
        for other in drawn[:index]:
            assert image.shape == other.shape
            assert (image != other).any()


@pytest.mark.parametrize("size", [(8, 8), (40, 30), (33, 400), (720, 1280)])
@pytest.mark.parametrize("label", ["x", "very long " * 30, ""])
def test_labels_fit_into_frames_of_any_size(size, label):
    frame = np.full((*size, 3), 255, np.uint8)
    drawn = draw_labels(frame, [label] * 7, np.full(7, 1 / 7))
    assert drawn.shape == frame.shape
    assert (drawn != frame).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times_s": [0.2, 0.1]}, r"`times_s` must be rising.*\[0.2, 0.1\]"),
        ({"times_s": [0.0]}, r"one row per time.*\(1, 3\). Received: \(2, 3\)"),
        ({"labels": ["a"]}, r"one column per label, \(2, 1\)"),
        ({"probabilities": 9 * ANSWERS}, r"in \[0, 1\]: were these logits"),
        ({"probabilities": np.nan * ANSWERS}, r"in \[0, 1\]"),
        ({"top": 0}, "`top` must be >= 1. Received: 0"),
        ({"target": "x.wmv"}, r"end in one of .mp4, .mkv, .webm, .avi, .gif. Received: 'x.wmv'"),
        ({"target": "x"}, "Received: 'x'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, changes, message):
    arguments = {
        "target": "x.mp4",
        "times_s": [0.0, 0.2],
        "probabilities": ANSWERS,
        "labels": LABELS,
        **changes,
    }
    arguments["target"] = tmp_path / arguments["target"]
    with pytest.raises(ValueError, match=message):
        write_labelled_video(tmp_path / "absent.mp4", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_source_is_not_written_over(tmp_path):
    source = make_video(tmp_path / "source.mp4")
    before = source.read_bytes()
    with pytest.raises(ValueError, match="another file than the source"):
        write_labelled_video(source, source, [0.0], ANSWERS[:1], LABELS)
    assert source.read_bytes() == before


def test_a_target_that_cannot_be_written_is_an_error(tmp_path):
    source = make_video(tmp_path / "source.mp4")
    with pytest.raises(FileNotFoundError, match="a folder that exists"):
        write_labelled_video(source, tmp_path / "no" / "t.mp4", [0.0], ANSWERS[:1], LABELS)
    (tmp_path / "t.mp4").mkdir()
    with pytest.raises(OSError, match=r"t\.mp4"):
        write_labelled_video(source, tmp_path / "t.mp4", [0.0], ANSWERS[:1], LABELS)
    assert {path.name for path in tmp_path.iterdir()} == {"source.mp4", "t.mp4"}


@pytest.mark.parametrize("suffix", KINDS)
def test_a_bad_source_leaves_the_old_target(tmp_path, suffix):
    target = tmp_path / f"t{suffix}"
    target.write_bytes(b"old")
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    with pytest.raises(BadVideoError):
        write_labelled_video(tmp_path / "bad.mp4", target, [0.0], ANSWERS[:1], LABELS)
    assert target.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {target.name, "bad.mp4"}
