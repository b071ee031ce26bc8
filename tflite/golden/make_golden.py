"""Golden numbers for all clients of the streaming files: `python tflite/golden/make_golden.py`.

Computed from TensorFlow's own resize, softmax and top-k, and, for the clock, from the contract's
words written out literally; nothing of `grw_keras` is used.
"""

import base64
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import tensorflow as tf

GOLDEN = Path(__file__).with_name("golden.json")
# Height, width, resize_px, crop_px: noise, for it shows every wrong weight.
FRAMES = [
    (24, 24, 28, 24),  # of the size already: as it is
    (43, 61, 28, 24),  # smaller, odd sides
    (52, 18, 28, 24),  # portrait: smaller one way, larger the other
    (11, 15, 28, 24),  # larger
    (54, 96, 19, 16),  # smaller by far; the margin of three is odd
    (19, 19, 19, 16),  # cut only
    (17, 33, 16, 16),  # resized only
]
SMOOTHING = 0.6
LOGITS = [
    [0.5, -1.25, 3.0, 0.0],
    [2.0, 2.0, -4.0, 1.5],
    [1000.0, 998.0, -1000.0, 999.0],  # the largest must be subtracted first
    [-3.5, 0.25, 0.125, 6.0],
]
FPS = 5
# Thousandths of a second: 30 frames a second, rounded; half a millisecond early for a tick; two
# milliseconds early, which is too early; a gap; then one just after. Time 0 is on no tick.
START_MS = 473
TIMES_MS: list[float] = [START_MS + round(1000 * i / 30) for i in range(14)]
TIMES_MS += [
    START_MS + t for t in (599.5, 633, 798, 800, 999.9, 1000.2, 2250, 2300, 2399.2, 2401, 2600)
]
TOLERANCE_MS = 1
TOP_PROBABILITIES = [0.05, 0.3, 0.1, 0.3, 0.05, 0.2]
TOP_LABELS = ["bowing", "hugging", "kicking", "pointing", "punching", "pushing"]
TOP_K = 3


def frame(seed: int, height: int, width: int, resize_px: int, crop_px: int) -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = tf.constant(pixels, tf.float32) / 255.0
    if (height, width) != (crop_px, crop_px):
        image = tf.image.resize(image, [resize_px, resize_px], antialias=True)
        image = tf.image.resize_with_crop_or_pad(image, crop_px, crop_px)
    return {
        "width": width,
        "height": height,
        "rgb_base64": base64.b64encode(pixels.tobytes()).decode(),
        "resize_px": resize_px,
        "crop_px": crop_px,
        "tensor": rounded(tf.reshape(image, [-1])),
    }


def smoothing() -> dict:
    probabilities = tf.nn.softmax(tf.constant(LOGITS, tf.float64))
    smoothed = [probabilities[0]]
    for p in probabilities[1:]:
        smoothed.append(SMOOTHING * smoothed[-1] + (1 - SMOOTHING) * p)
    return {
        "s": SMOOTHING,
        "logits": LOGITS,
        "probabilities": [rounded(p) for p in probabilities],
        "smoothed": [rounded(p) for p in smoothed],
    }


def clock() -> dict:
    kept = []
    tick = Fraction(TIMES_MS[0])
    for i, time in enumerate(map(Fraction, TIMES_MS)):
        if time + TOLERANCE_MS >= tick:
            kept.append(i)
            while tick <= time + TOLERANCE_MS:
                tick += Fraction(1000, FPS)
    return {"fps": float(FPS), "timestamps_s": rounded(t / 1000 for t in TIMES_MS), "kept": kept}


def top() -> dict:
    values, indices = tf.math.top_k(tf.constant(TOP_PROBABILITIES, tf.float64), TOP_K)
    return {
        "probabilities": TOP_PROBABILITIES,
        "labels": TOP_LABELS,
        "k": TOP_K,
        "top": [[TOP_LABELS[i], p] for i, p in zip(indices, rounded(values), strict=True)],
    }


def rounded(values) -> list[float]:
    return [round(float(value), 6) for value in values]


def golden() -> dict:
    return {
        "frames": [frame(seed, *sizes) for seed, sizes in enumerate(FRAMES)],
        "smoothing": smoothing(),
        "clock": clock(),
        "top": top(),
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), separators=(",", ":")) + "\n")
