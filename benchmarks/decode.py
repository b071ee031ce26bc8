r"""What decoding clips costs: resident memory over many decodes, and rate beside plain loops.

Rates compare `read_frames` at 5 fps with a plain PyAV loop and OpenCV's VideoCapture, each of
which decodes all frames and converts and resizes those wanted, on one thread each, in turns.

    python benchmarks/decode.py --videos my_videos/ --decodes 4000 --rounds 0 \
        --csv benchmarks/results/decode.csv
"""

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import psutil

from grw_keras.data.sampling import grid_size
from grw_keras.data.video import BadVideoError, probe, read_frames

FPS = 5
REPORT_EVERY = 250
SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif"}
Times = dict[Path, np.ndarray]


def ours(path: Path, times: np.ndarray, size: int) -> np.ndarray:
    return read_frames(path, times, size)


def plain_pyav(path: Path, times: np.ndarray, size: int) -> np.ndarray:
    """Every frame decoded up to the last one wanted; those converted, and resized by OpenCV."""
    images: list[np.ndarray] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        rate = float(stream.average_rate)
        for number, frame in enumerate(container.decode(stream)):
            if len(images) < len(times) and number / rate >= times[len(images)] - 1e-6:
                image = frame.reformat(format="rgb24", threads=1).to_ndarray()
                images.append(cv2.resize(image, (size, size)))
                if len(images) == len(times):
                    break
    return np.stack(images)


def opencv(path: Path, times: np.ndarray, size: int) -> np.ndarray:
    """The same by VideoCapture, which converts only what is retrieved."""
    images: list[np.ndarray] = []
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    rate = capture.get(cv2.CAP_PROP_FPS)
    for number in itertools.count():
        if len(images) == len(times) or not capture.grab():
            break
        if len(images) < len(times) and number / rate >= times[len(images)] - 1e-6:
            image = cv2.resize(capture.retrieve()[1], (size, size))
            images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(images)


READERS: dict[str, Callable[[Path, np.ndarray, int], np.ndarray]] = {
    "read_frames": ours,
    "plain PyAV": plain_pyav,
    "OpenCV": opencv,
}


def clips(folder: Path) -> Times:
    """The grid of every video in a folder that can be read."""
    times = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            try:
                duration_s = probe(path).duration_s
            except BadVideoError as error:
                print(f"left out: {error}")
                continue
            times[path] = np.arange(grid_size(duration_s, FPS)) / FPS
    if not times:
        raise SystemExit(f"no videos in {folder} ({', '.join(sorted(SUFFIXES))})")
    return times


def memory(times: Times, size: int, decodes: int) -> list[tuple[int, float]]:
    """Resident MB after every so many decodes."""
    process, rows = psutil.Process(), []
    for number, (path, wanted) in enumerate(itertools.cycle(times.items()), start=1):
        read_frames(path, wanted, size)
        if number % REPORT_EVERY == 0 or number == decodes:
            rows.append((number, process.memory_info().rss / 1e6))
            print(f"{number:>6} decodes: {rows[-1][1]:7.1f} MB", flush=True)
        if number == decodes:
            return rows
    return rows


def slope(rows: list[tuple[int, float]]) -> float:
    """kB a decode, fitted after the first report: until then the allocator fills its pools."""
    numbers, sizes = np.array(rows[1:] if len(rows) > 2 else rows).T
    return float(np.polyfit(numbers, sizes, 1)[0] * 1e3) if len(numbers) > 1 else 0.0


def rates(times: Times, size: int, rounds: int) -> dict[str, list[float]]:
    """Clips a second of each reader in each round; the readers take turns clip by clip."""
    measured: dict[str, list[float]] = {name: [] for name in READERS}
    for _ in range(rounds):
        spent = dict.fromkeys(READERS, 0.0)
        for path, wanted in times.items():
            for name, reader in READERS.items():
                begin = time.perf_counter()
                reader(path, wanted, size)
                spent[name] += time.perf_counter() - begin
        for name, seconds in spent.items():
            measured[name].append(len(times) / seconds)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, required=True, help="a folder of videos")
    parser.add_argument("--size", type=int, default=200, help="of the frames, pixels")
    parser.add_argument("--decodes", type=int, default=2000, help="for the memory; 0: leave out")
    parser.add_argument("--rounds", type=int, default=5, help="for the rates; 0: leave out")
    parser.add_argument("--csv", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    times = clips(arguments.videos)
    rows: list[tuple[str, str, float]] = []
    if arguments.rounds:
        measured = rates(times, arguments.size, arguments.rounds)
        plain = measured["plain PyAV"]
        for name, values in measured.items():
            ratio = statistics.median(a / b for a, b in zip(values, plain, strict=True))
            rate = statistics.median(values)
            print(f"{name:>12}: {rate:6.1f} clips/s, {ratio:.2f} of the plain PyAV loop")
            rows += [("clips_per_second", name, rate), ("ratio_to_plain_pyav", name, ratio)]
    if arguments.decodes:
        resident = memory(times, arguments.size, arguments.decodes)
        print(f"slope after the first {REPORT_EVERY}: {slope(resident):+.2f} kB a decode")
        rows += [("resident_mb", str(number), size) for number, size in resident]
        rows.append(("slope_kb_per_decode", "", slope(resident)))
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["quantity", "of", "value"])
            writer.writerows((quantity, of, f"{value:.4g}") for quantity, of, value in rows)


if __name__ == "__main__":
    main()
