"""Names what a camera or a video shows, with an exported streaming model.

python classify.py a0s.tflite                      # the first camera, in a window
python classify.py a0s.tflite --source picamera2   # the Pi's own camera
python classify.py a0s.tflite --source clip.mp4 --headless
"""

import argparse
import collections
import time
from collections.abc import Iterator

import cv2
import numpy as np

from grw_keras.lite import FrameClock, StreamSession

GAP_S = 2.0  # after so long without a frame what comes is another scene
RATE_FRAMES = 10  # over which the rate is averaged
WINDOW = "grw_keras: q ends"
Frame = tuple[float, np.ndarray]  # time in seconds, RGB picture


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        session = StreamSession(
            options.model,
            threads=options.threads,
            head_stride=options.head_stride,
            smoothing=options.smoothing,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
    show = show_line if options.headless else open_window()
    last_s = None
    answered: collections.deque[float] = collections.deque(maxlen=RATE_FRAMES + 1)
    for time_s, frame in frames(options.source, FrameClock(session.fps)):
        if last_s is not None and time_s - last_s > GAP_S:
            session.reset()
        last_s = time_s
        started = time.perf_counter()
        session.step(frame)
        answered.append(time.perf_counter())
        rate = (len(answered) - 1) / (answered[-1] - answered[0]) if len(answered) > 1 else 0.0
        speed = f"{1000 * (answered[-1] - started):.1f} ms, {rate:.1f} fps"
        if not show(time_s, frame, session.top(options.top), speed):
            break


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Names what a camera or a video shows.")
    parser.add_argument("model", help="a .tflite file of kind stream, or embed")
    parser.add_argument(
        "--source",
        default="0",
        help="number of a camera (default 0), 'picamera2', or a video file",
    )
    parser.add_argument("--headless", action="store_true", help="print lines, open no window")
    parser.add_argument("--top", type=int, default=3, help="number of classes shown (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of the runtime (default 2)")
    parser.add_argument(
        "--smoothing",
        type=float,
        default=0.6,
        help="share of the answer before, in [0, 1) (default 0.6)",
    )
    parser.add_argument(
        "--head-stride",
        type=int,
        default=1,
        help="of an embed file: its head answers on every so many frames (default 1)",
    )
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error(f"--top must be at least 1. Received: {options.top}")
    return options


def frames(source: str, clock: FrameClock) -> Iterator[Frame]:
    """The frames that the clock wants, of a camera's number, of `picamera2`, or of a file."""
    if source == "picamera2":
        return picamera2_frames(clock)
    return opencv_frames(int(source) if source.isdecimal() else source, clock)


def opencv_frames(source: int | str, clock: FrameClock) -> Iterator[Frame]:
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise SystemExit(f"--source must be a camera or a video to read. Received: {source}")
    live = isinstance(source, int)
    try:
        while capture.grab():
            time_s = time.monotonic() if live else capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if clock.wants(time_s):
                decoded, bgr = capture.retrieve()
                if decoded:
                    yield time_s, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
    if live:
        raise SystemExit(f"Camera {source} gives no more frames: is it unplugged?")


def picamera2_frames(clock: FrameClock) -> Iterator[Frame]:
    try:
        from picamera2 import Picamera2
    except ImportError as error:
        raise SystemExit(
            "--source picamera2 needs the system's package: sudo apt install python3-picamera2, "
            "and a venv made with --system-site-packages."
        ) from error
    with Picamera2() as camera:
        # Its names are of the order in a 24-bit word: BGR888 gives arrays in the order R, G, B.
        camera.configure(camera.create_video_configuration(main={"format": "BGR888"}))
        camera.start()
        while True:
            frame, time_s = camera.capture_array(), time.monotonic()
            if clock.wants(time_s):
                yield time_s, frame


def show_line(time_s: float, frame: np.ndarray, top: list[tuple[str, float]], speed: str) -> bool:
    """Prints an answer; True: go on."""
    del frame
    names = ", ".join(f"{label} {probability:.1%}" for label, probability in top)
    print(f"{time_s:.2f} s: {names} ({speed})", flush=True)
    return True


def open_window():
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        raise SystemExit(
            "No window can be opened: run with --headless, or pip uninstall "
            "opencv-python-headless and pip install opencv-python."
        ) from error
    return show_window


def show_window(time_s: float, frame: np.ndarray, top: list[tuple[str, float]], speed: str) -> bool:
    """Draws an answer into its frame; False: the user pressed q."""
    del time_s
    cv2.imshow(WINDOW, cv2.cvtColor(labelled(frame, top, speed), cv2.COLOR_RGB2BGR))
    return cv2.waitKey(1) != ord("q")


def labelled(frame: np.ndarray, top: list[tuple[str, float]], speed: str) -> np.ndarray:
    """A copy of the frame with a line for each class, and the speed."""
    drawn = frame.copy()
    scale = frame.shape[0] / 480
    for row, text in enumerate([*(f"{p:.0%} {label}" for label, p in top), speed], start=1):
        place = (round(10 * scale), round(28 * row * scale))
        for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):  # outlined: any background
            thickness = max(1, round(width * scale))
            font = cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(drawn, text, place, font, 0.8 * scale, colour, thickness, cv2.LINE_AA)
    return drawn


if __name__ == "__main__":
    main()
