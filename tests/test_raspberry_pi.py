"""The Raspberry Pi client: its frames, its lines and its errors."""

import re
from pathlib import Path

import numpy as np
import pytest

from grw_keras.lite import FrameClock, StreamSession
from tests import lite_files, video_files
from tests.helpers import script

TFLITE = Path(__file__).parents[1] / "tflite"


@pytest.fixture(scope="module")
def classify():
    """The script of tflite/raspberry_pi."""
    return script(TFLITE / "raspberry_pi/classify.py")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return video_files.write(tmp_path_factory.mktemp("pi") / "clip.mp4", frames=45, fps=30)


def test_pi_frames_come_thinned_by_the_videos_timestamps_and_as_rgb(classify, tmp_path):
    red = [np.full((48, 64, 3), (8 * i, 0, 0), np.uint8) for i in range(24)]
    path = video_files.write(tmp_path / "red.mp4", frames=red, fps=10)
    times, pictures = zip(*classify.frames(str(path), FrameClock(2.5)), strict=True)
    np.testing.assert_allclose(times, [0.0, 0.4, 0.8, 1.2, 1.6, 2.0], atol=1e-3)
    for time, picture in zip(times, pictures, strict=True):
        np.testing.assert_allclose(picture.mean((0, 1)), [80 * time, 0, 0], atol=6)


def test_pi_headless_lines_hold_what_a_session_answers(classify, clip, tiny_files, capsys):
    model = tiny_files / "tiny_embed.tflite"
    options = ["--headless", "--top", "2", "--head-stride", "2", "--smoothing", "0.5"]
    classify.main([str(model), "--source", str(clip), *options])
    lines = capsys.readouterr().out.splitlines()
    session = StreamSession(model, head_stride=2, smoothing=0.5)
    assert len(lines) == 8
    for line, index in zip(lines, range(0, 48, 6), strict=True):
        session.step(video_files.numbered(index))
        (label, probability), _ = session.top(2)
        found = re.fullmatch(
            r"(\d+\.\d\d) s: (\w+) (\d+\.\d)%, \w+ \d+\.\d% \(\d+\.\d ms, \d+\.\d fps\)", line
        )
        assert found, line
        assert (float(found[1]), found[2]) == (index / 30, label)
        assert float(found[3]) == pytest.approx(100 * probability, abs=0.5)


def test_a_pi_label_is_drawn_into_a_copy(classify):
    frame = np.full((120, 160, 3), 128, np.uint8)
    drawn = classify.labelled(frame, [("hugging", 0.5)], "1 ms")
    assert (frame == 128).all()
    assert (drawn[:60] != 128).any()
    assert (drawn[60:] == 128).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.tflite"], "which is no file"),
        (["MODEL", "--source", "none.mp4", "--headless"], "Received: none.mp4"),
        (["MODEL", "--head-stride", "2"], "export with split_head=True"),
        (["MODEL", "--source", "picamera2", "--headless"], "apt install python3-picamera2"),
    ],
)
def test_pi_errors_are_a_sentence(classify, tiny_files, arguments, message):
    model = str(tiny_files / "tiny_stream.tflite")
    with pytest.raises(SystemExit, match=re.escape(message)):
        classify.main([model if word == "MODEL" else word for word in arguments])


def test_a_gap_starts_the_pi_session_anew(classify, tiny_files, monkeypatch):
    frames = lite_files.video(3)
    timed = list(zip((0.0, 0.2, 9.0), frames, strict=True))
    monkeypatch.setattr(classify, "frames", lambda *_: timed)
    likeliest = []

    def keep(time_s, frame, top, speed):
        likeliest.append(top[0][1])
        return True

    monkeypatch.setattr(classify, "show_line", keep)
    model = str(tiny_files / "tiny_stream.tflite")
    classify.main([model, "--headless", "--smoothing", "0"])
    parts = (frames[:2], frames[2:])
    expected = [p for part in parts for p in lite_files.reference_stream(part)]
    np.testing.assert_allclose(likeliest, np.max(expected, axis=1), atol=1e-5)
