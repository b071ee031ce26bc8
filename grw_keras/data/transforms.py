"""From decoded frames to a clip at the model's resolution; augmentation draws once for a clip."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from grw_keras.checked import Checked

_GREY = (128, 128, 128)  # fills what a geometric operation leaves empty
_CROP_ATTEMPTS = 10  # as torchvision.transforms.RandomResizedCrop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(Checked):
    """What is random about a training clip's pixels. The same draws hold for all of its frames.

    Args:
        flip: mirror half of the clips left to right. This changes what some labels mean
            ("pointing left", writing), so it is for data sets that have no such labels.
        scale: smallest and largest share of the frame's area, in (0, 1], that a random part
            resized to the crop has. None: the centre crop.
        ratio: smallest and largest width / height of that part; > 0.
        randaugment_layers: operations drawn from RandAugment's list for a clip; 0: none.
        randaugment_magnitude: their strength, in [0, 10].

    Raises:
        ValueError: a value out of range.

    Reference:
        Cubuk et al., RandAugment, https://arxiv.org/abs/1909.13719; Szegedy et al., Going deeper
        with convolutions, section 6 (random resized crop).
    """

    flip: bool = True
    scale: tuple[float, float] | None = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    randaugment_layers: int = 0
    randaugment_magnitude: float = 5.0

    def __post_init__(self):
        self._require("flip", isinstance(self.flip, bool), "True or False")
        for field in ("scale", "ratio"):
            pair = getattr(self, field)
            if pair is None and field == "scale":
                continue
            largest = 1.0 if field == "scale" else math.inf
            allowed = "two ascending numbers " + ("in (0, 1]" if field == "scale" else "> 0")
            whole = isinstance(pair, (tuple, list)) and len(pair) == 2
            whole = whole and all(isinstance(value, numbers.Real) for value in pair)
            self._require(field, whole and 0 < pair[0] <= pair[1] <= largest, allowed)
            self._require(field, math.isfinite(pair[1]), allowed)
            object.__setattr__(self, field, (float(pair[0]), float(pair[1])))
        layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
        counts = isinstance(layers, numbers.Integral) and not isinstance(layers, bool)
        self._require("randaugment_layers", counts and layers >= 0, "an integer >= 0")
        real = isinstance(magnitude, numbers.Real)
        self._require("randaugment_magnitude", real and 0 <= magnitude <= 10, "in [0, 10]")


def evaluation_clip(frames: np.ndarray, crop: int) -> np.ndarray:
    """The frames' centre; where it can't be exact, half a pixel up and to the left.

    Args:
        frames: [N, H, W, 3] uint8.
        crop: height and width of the result, pixels, at most H and W.

    Returns:
        [N, crop, crop, 3] uint8, contiguous.

    Raises:
        ValueError: the frames' shape or dtype is another, or the crop doesn't fit.
    """
    _check_frames(frames)
    height, width = frames.shape[1:3]
    if not isinstance(crop, numbers.Integral) or not 1 <= crop <= min(height, width):
        raise ValueError(
            f"`crop` must be an integer from 1 to the frames' {min(height, width)} px. "
            f"Received: {crop!r}"
        )
    top, left = (height - crop) // 2, (width - crop) // 2
    return np.ascontiguousarray(frames[:, top : top + crop, left : left + crop])


def training_clip(
    frames: np.ndarray,
    crop: int,
    augmentation: Augmentation | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """A clip for training: a function of the frames and the generator's state alone.

    Args:
        frames: [N, H, W, 3] uint8.
        crop: height and width of the result, pixels. A random part may be smaller than this, the
            centre crop may not.
        augmentation: what is random. None: nothing, the centre crop.
        rng: source of the draws, such as `sampling.sample_rng`'s.

    Returns:
        [N, crop, crop, 3] uint8, contiguous.

    Raises:
        ValueError: as for `evaluation_clip`.
    """
    if augmentation is None or augmentation.scale is None:
        clip = evaluation_clip(frames, crop)
    else:
        _check_frames(frames)
        if not isinstance(crop, numbers.Integral) or crop < 1:
            raise ValueError(f"`crop` must be a positive integer. Received: {crop!r}")
        clip = _resized_crop(frames, crop, augmentation.scale, augmentation.ratio, rng)
    if augmentation is None:
        return clip
    if augmentation.flip and rng.random() < 0.5:
        clip = np.ascontiguousarray(clip[:, :, ::-1])
    for _ in range(augmentation.randaugment_layers):
        operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        sign = 1 if rng.random() < 0.5 else -1
        clip = operation(clip, augmentation.randaugment_magnitude / 10, sign)
    return clip


def _check_frames(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        received = f"{frames.dtype}{list(frames.shape)}"
        raise ValueError(f"`frames` must be uint8 [N, H, W, 3]. Received: {received}")


def _resized_crop(
    frames: np.ndarray,
    crop: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """A random part of the frames, resized; the whole frames when no part drawn fits."""
    height, width = frames.shape[1:3]
    top, left, part_height, part_width = 0, 0, height, width
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*np.log(ratio)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 1 <= h <= height and 1 <= w <= width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            part_height, part_width = h, w
            break
    part = frames[:, top : top + part_height, left : left + part_width]
    shrinks = part_height >= crop and part_width >= crop
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (crop, crop), interpolation=method) for frame in part])


# RandAugment's operations. Each takes the clip, a strength in [0, 1] and a sign, and treats all
# frames alike: those that go by an image's histogram or mean go by the whole clip's, or they
# would flicker. Ranges are AutoAugment's (https://arxiv.org/abs/1805.09501, table 6).
Operation = Callable[[np.ndarray, float, int], np.ndarray]


def _identity(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    return clip


def _on_whole(clip: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Changes the clip as one picture, its frames below one another."""
    tall = np.ascontiguousarray(clip).reshape(-1, *clip.shape[2:])
    return np.asarray(change(Image.fromarray(tall))).reshape(clip.shape)


def _auto_contrast(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    return _on_whole(clip, ImageOps.autocontrast)


def _equalize(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    return _on_whole(clip, ImageOps.equalize)


def _posterize(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    bits = 8 - round(4 * strength)
    return clip & np.uint8(256 - (1 << (8 - bits)))


def _solarize(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    return np.where(clip >= 256 * (1 - strength), 255 - clip, clip)


def _enhance(kind: Any) -> Operation:
    """Color, contrast or brightness, up to ten times weaker and to nearly twice as strong."""

    def operation(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
        return _on_whole(clip, lambda image: kind(image).enhance(1 + sign * 0.9 * strength))

    return operation


def _sharpness(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    factor = 1 + sign * 0.9 * strength
    frames = [ImageEnhance.Sharpness(Image.fromarray(frame)).enhance(factor) for frame in clip]
    return np.stack([np.asarray(frame) for frame in frames])


def _warp(clip: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves each frame by [2, 2] about its centre, or by [2, 3] with a shift in pixels."""
    height, width = clip.shape[1:3]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    linear, shift = matrix[:, :2], matrix[:, 2:].sum(axis=1)
    affine = np.column_stack([linear, centre - linear @ centre + shift])
    return np.stack(
        [cv2.warpAffine(frame, affine, (width, height), borderValue=_GREY) for frame in clip]
    )


def _rotate(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    angle = math.radians(30 * strength * sign)
    cos, sin = math.cos(angle), math.sin(angle)
    return _warp(clip, np.array([[cos, sin], [-sin, cos]]))


def _shear_x(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    return _warp(clip, np.array([[1, 0.3 * strength * sign], [0, 1]]))


def _shear_y(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    return _warp(clip, np.array([[1, 0], [0.3 * strength * sign, 1]]))


def _translate_x(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    pixels = round(150 / 331 * strength * clip.shape[2]) * sign
    return _warp(clip, np.array([[1.0, 0, pixels], [0, 1, 0]]))


def _translate_y(clip: np.ndarray, strength: float, sign: int) -> np.ndarray:
    pixels = round(150 / 331 * strength * clip.shape[1]) * sign
    return _warp(clip, np.array([[1.0, 0, 0], [0, 1, pixels]]))


OPERATIONS: tuple[Operation, ...] = (
    *(_identity, _auto_contrast, _equalize, _posterize, _solarize),
    *(_enhance(ImageEnhance.Color), _enhance(ImageEnhance.Contrast)),
    *(_enhance(ImageEnhance.Brightness), _sharpness, _rotate),
    *(_shear_x, _shear_y, _translate_x, _translate_y),
)
