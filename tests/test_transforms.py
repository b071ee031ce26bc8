"""Crops, flips and RandAugment on clips, against literal versions of them."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from grw_keras.data import transforms
from grw_keras.data.transforms import OPERATIONS, Augmentation, evaluation_clip, training_clip


@pytest.fixture
def clip():
    """Smooth pictures that differ from frame to frame."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 6, 5, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((50, 60), Image.BICUBIC)) for frame in coarse]
    )


def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize(
    ("size", "crop", "offset"),
    [(200, 172, 14), (256, 224, 16), (300, 256, 22), (5, 2, 1), (3, 3, 0)],
)
def test_evaluation_takes_the_centre(size, crop, offset):
    frames = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    cut = evaluation_clip(frames, crop)
    assert cut.flags.c_contiguous
    np.testing.assert_array_equal(cut, frames[:, offset : offset + crop, offset : offset + crop])
    np.testing.assert_array_equal(training_clip(frames, crop, None, rng()), cut)


def test_nothing_is_drawn_without_augmentation(clip):
    generator = rng()
    training_clip(clip, 40, None, generator)
    assert generator.random() == rng().random()


@pytest.mark.parametrize("layers", [0, 2])
def test_a_clip_is_a_function_of_the_generator_s_state(clip, layers):
    augmentation = Augmentation(randaugment_layers=layers, randaugment_magnitude=7)
    before = clip.copy()
    first, second = (training_clip(clip, 40, augmentation, rng()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(clip, before)
    assert (first.shape, first.dtype) == ((4, 40, 40, 3), np.uint8)
    assert first.flags.c_contiguous


def test_all_frames_of_a_clip_get_the_same_draws(clip):
    still = np.repeat(clip[:1], 5, axis=0)
    for seed in range(40):
        augmentation = Augmentation(randaugment_layers=2, randaugment_magnitude=8)
        drawn = training_clip(still, 40, augmentation, np.random.default_rng(seed))
        assert (drawn == drawn[:1]).all()


def test_half_of_the_clips_are_flipped(clip):
    augmentation = Augmentation(scale=None)
    plain = evaluation_clip(clip, 40)
    flipped = 0
    generator = rng()
    for _ in range(400):
        drawn = training_clip(clip, 40, augmentation, generator)
        if not np.array_equal(drawn, plain):
            np.testing.assert_array_equal(drawn, plain[:, :, ::-1])
            flipped += 1
    assert 160 < flipped < 240
    unflipped = training_clip(clip, 40, Augmentation(scale=None, flip=False), rng())
    np.testing.assert_array_equal(unflipped, plain)


def test_random_parts_cover_the_area_and_shape_asked_for():
    # A picture that says where it was cut: red grows to the right, green downwards.
    ramp = np.arange(240, dtype=np.uint8)
    frames = np.zeros((1, 240, 240, 3), np.uint8)
    frames[..., 0], frames[..., 1] = ramp, ramp[:, None]
    augmentation = Augmentation(flip=False, scale=(0.2, 0.6), ratio=(0.5, 2.0))
    generator = rng()
    areas, ratios, centres = [], [], []
    for _ in range(600):
        part = training_clip(frames, 24, augmentation, generator)[0].astype(float)
        width = (part[0, -1, 0] - part[0, 0, 0]) * 24 / 23
        height = (part[-1, 0, 1] - part[0, 0, 1]) * 24 / 23
        areas.append(width * height / 240**2)
        ratios.append(width / height)
        centres.append((part[0, -1, 0] + part[0, 0, 0]) / 2)
    assert 0.18 < min(areas) < 0.23
    assert 0.54 < max(areas) < 0.63
    assert 0.47 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.15
    assert abs(np.mean(np.log(ratios))) < 0.06
    assert abs(np.mean(centres) - 119.5) < 5


def test_the_whole_frame_is_taken_where_no_part_fits(clip):
    whole = training_clip(
        clip, 40, Augmentation(flip=False, scale=(1.0, 1.0), ratio=(3.0, 3.0)), rng()
    )
    for frame, source in zip(whole, clip, strict=True):
        expected = np.einsum("ih,jw,hwc->ijc", shares(60, 40), shares(50, 40), source)
        assert np.abs(frame - expected).max() <= 0.6


def shares(size, target):
    """How much of each source pixel every target pixel averages over."""
    edges = np.arange(target + 1) * size / target
    overlap = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(
        edges[:-1, None], np.arange(size)
    )
    return overlap.clip(0) * target / size


def operation(name):
    names = (
        "identity auto_contrast equalize posterize solarize color contrast brightness sharpness "
        "rotate shear_x shear_y translate_x translate_y"
    )
    assert len(names.split()) == len(OPERATIONS) == 14
    return OPERATIONS[names.split().index(name)]


def as_one_picture(clip, change):
    return np.asarray(change(Image.fromarray(clip.reshape(-1, clip.shape[2], 3)))).reshape(
        clip.shape
    )


LITERAL = {
    "identity": lambda clip: clip,
    "auto_contrast": lambda clip: as_one_picture(clip, ImageOps.autocontrast),
    "equalize": lambda clip: as_one_picture(clip, ImageOps.equalize),
    "posterize": lambda clip: clip // 4 * 4,  # 8 - 4 / 2 bits
    "solarize": lambda clip: np.where(clip >= 128, 255 - clip, clip),
    "brightness": lambda clip: np.clip(clip * 1.45, 0, 255),
    "color": lambda clip: np.clip(1.45 * clip - 0.45 * grey(clip)[..., None], 0, 255),
    "contrast": lambda clip: np.clip(1.45 * clip - 0.45 * round(grey(clip).mean()), 0, 255),
    "sharpness": lambda clip: np.stack(
        [np.asarray(ImageEnhance.Sharpness(Image.fromarray(frame)).enhance(1.45)) for frame in clip]
    ),
}


def grey(clip):
    return clip @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("name", LITERAL)
def test_colour_operations_at_half_strength(clip, name):
    result = operation(name)(clip, 0.5, 1)
    assert (result.dtype, result.shape) == (np.uint8, clip.shape)
    assert np.abs(result.astype(float) - LITERAL[name](clip)).max() <= 1.5


# Where a point right of and below the centre by (x, y) goes, at full strength and sign 1.
MOVES = {
    "rotate": lambda x, y: (
        x * math.cos(math.pi / 6) + y * math.sin(math.pi / 6),
        y * math.cos(math.pi / 6) - x * math.sin(math.pi / 6),
    ),
    "shear_x": lambda x, y: (x + 0.3 * y, y),
    "shear_y": lambda x, y: (x, y + 0.3 * x),
    "translate_x": lambda x, y: (x + round(150 / 331 * 101), y),
    "translate_y": lambda x, y: (x, y + round(150 / 331 * 101)),
}


@pytest.mark.parametrize("point", [(0, 0), (4, 0), (0, 3), (-30, -35)])
@pytest.mark.parametrize("name", MOVES)
def test_geometric_operations_move_points(name, point):
    clip = np.zeros((2, 101, 101, 3), np.uint8)
    x, y = point
    clip[:, 50 + y - 1 : 50 + y + 2, 50 + x - 1 : 50 + x + 2, 0] = 255
    result = operation(name)(clip, 1.0, 1)[1, :, :, 0] * 1.0
    bright = result * (result > 140)  # the fill is 128
    rows, columns = np.indices(bright.shape)
    found = (bright * columns).sum() / bright.sum(), (bright * rows).sum() / bright.sum()
    assert found == pytest.approx([50 + v for v in MOVES[name](x, y)], abs=0.5)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "translate_y"])
def test_what_geometric_operations_leave_empty_is_grey(clip, name):
    result = operation(name)(np.full_like(clip, 255), 1.0, 1)
    assert {128, 255} <= set(np.unique(result))


def test_strength_zero_changes_nothing_but_histogram_operations(clip):
    for name in ("posterize", "color", "contrast", "brightness", "sharpness", *MOVES):
        np.testing.assert_array_equal(operation(name)(clip, 0.0, -1), clip)


def test_statistics_go_by_the_whole_clip_so_that_it_does_not_flicker():
    clip = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (50, 100, 150)])
    levels = operation("auto_contrast")(clip, 1.0, 1)[:, 0, 0, 0]
    assert levels.tolist() == [0, 127, 255]


def test_every_operation_is_drawn(clip, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        transforms,
        "OPERATIONS",
        tuple(
            lambda frames, strength, sign, i=i: drawn.append((i, strength, sign)) or frames
            for i in range(14)
        ),
    )
    augmentation = Augmentation(randaugment_layers=2, randaugment_magnitude=9)
    generator = rng()
    for _ in range(400):
        training_clip(clip, 40, augmentation, generator)
    assert len(drawn) == 800
    assert np.bincount([i for i, _, _ in drawn], minlength=14).min() > 30
    assert {strength for _, strength, _ in drawn} == {0.9}
    assert 330 < sum(sign == 1 for _, _, sign in drawn) < 470


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip": 1}, "`flip` must be True or False. Received: 1"),
        ({"scale": 0.5}, "`scale` must be two ascending numbers"),
        ({"scale": (0, 1)}, r"`scale` must be two ascending numbers in \(0, 1\]"),
        ({"scale": (0.5, 1.5)}, "`scale` must be two ascending numbers"),
        ({"scale": (0.8, 0.5)}, "`scale` must be two ascending numbers"),
        ({"ratio": (0, 1)}, "`ratio` must be two ascending numbers > 0"),
        ({"ratio": (1, float("inf"))}, "`ratio` must be two ascending numbers"),
        ({"ratio": None}, "`ratio` must be two ascending numbers"),
        ({"randaugment_layers": -1}, "`randaugment_layers` must be an integer >= 0"),
        ({"randaugment_layers": 1.5}, "`randaugment_layers` must be an integer >= 0"),
        ({"randaugment_magnitude": 11}, r"`randaugment_magnitude` must be in \[0, 10\]"),
        ({"randaugment_magnitude": "5"}, r"`randaugment_magnitude` must be in \[0, 10\]"),
    ],
)
def test_wrong_augmentations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


def test_wrong_frames_and_crops_are_refused(clip):
    with pytest.raises(ValueError, match=r"from 1 to the frames' 50 px\. Received: 51"):
        evaluation_clip(clip, 51)
    with pytest.raises(ValueError, match="`crop` must be a positive integer"):
        training_clip(clip, 0, Augmentation(), rng())
    with pytest.raises(
        ValueError, match=r"uint8 \[N, H, W, 3\]. Received: float64\[4, 60, 50, 3\]"
    ):
        evaluation_clip(clip / 255, 40)
    with pytest.raises(ValueError, match="`frames` must be uint8"):
        training_clip(clip[0], 40, Augmentation(), rng())
