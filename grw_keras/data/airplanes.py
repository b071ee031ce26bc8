"""Airplanes: short videos of model airplanes that yaw, pitch or roll, made from numbers.

The warm-up data set of the paper (section 3, figure 2 top), drawn anew: 1,000 training and 100 test
clips of 10 frames. A clip starts from a random pose and turns about one of the airplane's own axes.
Poses are uniform over all rotations, and a uniform pose turned by anything is uniform: a single
frame says nothing of the class. Its frames played backwards are a clip of the same class that turns
the other way: only their order says which way.

Shape letters: B clips, N frames, S pixels of height and width, F faces.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import cv2
import numpy as np

CLASSES = ("yaw", "pitch", "roll")
SPLITS = {"train": 1000, "test": 100}  # clips
FRAMES, FPS = 10, 5.0
SPEED_DEGREES = (6.0, 20.0)  # between frames
LEAST_SIZE = 16

_AXES = {"yaw": (0.0, 0.0, 1.0), "pitch": (0.0, 1.0, 0.0), "roll": (1.0, 0.0, 0.0)}
_SIDES = 8  # of a fuselage
_FINER = 3  # pixels drawn for a pixel of the clip, each way
_SUBPIXEL_BITS = 4
_DISTANCE = 3.5  # of the camera
_ZOOM = 1.9  # of half the picture; no airplane leaves it in any pose
_LIGHT = np.array([0.35, 0.8, 0.5]) / np.linalg.norm([0.35, 0.8, 0.5])
_AMBIENT = 0.35
_THICK = 0.12  # of a wing, in chords
_GREY = (90, 90, 95)  # of engines
_RED, _GREEN = (200, 40, 40), (40, 170, 70)  # the lights at the wings' tips, left and right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane:
    """An airplane's form, in lengths of its fuselage, x ahead, y to the left, z up.

    Args:
        radius: of the fuselage.
        span: from tip to tip.
        chord: of the wing at the root.
        taper: chord at the tip over that at the root.
        sweep: how far the tip's leading edge lies behind the root's.
        wing_x, wing_z: where the wing's leading edge meets the fuselage.
        tail_span: of the tailplane.
        fin: height of the vertical tail.
        engines: places (x, |y|, z) of engines on both sides.
        body, wing, tail: colours, RGB.
    """

    radius: float = 0.06
    span: float = 1.0
    chord: float = 0.2
    taper: float = 0.5
    sweep: float = 0.15
    wing_x: float = 0.1
    wing_z: float = 0.0
    tail_span: float = 0.4
    fin: float = 0.2
    engines: tuple[tuple[float, float, float], ...] = ()
    body: tuple[int, int, int]
    wing: tuple[int, int, int]
    tail: tuple[int, int, int]


PLANES = (
    Plane(  # airliner
        engines=((0.1, 0.2, -0.07),),
        body=(235, 235, 240),
        wing=(165, 172, 185),
        tail=(30, 80, 170),
    ),
    Plane(  # glider
        radius=0.045,
        span=1.25,
        chord=0.1,
        taper=0.6,
        sweep=0.02,
        fin=0.16,
        tail_span=0.32,
        body=(250, 250, 245),
        wing=(225, 222, 210),
        tail=(220, 90, 40),
    ),
    Plane(  # delta
        span=0.75,
        chord=0.5,
        taper=0.12,
        sweep=0.42,
        wing_x=0.15,
        tail_span=0.18,
        fin=0.24,
        body=(120, 130, 120),
        wing=(95, 110, 95),
        tail=(70, 80, 75),
    ),
    Plane(  # high wing
        radius=0.085,
        span=1.1,
        chord=0.19,
        taper=0.9,
        sweep=0.0,
        wing_x=0.2,
        wing_z=0.09,
        tail_span=0.42,
        body=(205, 60, 55),
        wing=(240, 200, 70),
        tail=(205, 60, 55),
    ),
    Plane(  # two engines on the wing
        radius=0.075,
        span=1.15,
        chord=0.2,
        taper=0.45,
        sweep=0.05,
        wing_x=0.15,
        engines=((0.17, 0.22, 0.0),),
        body=(60, 90, 150),
        wing=(85, 120, 180),
        tail=(235, 210, 90),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """How an airplane moves in a clip.

    Args:
        plane: whose form it has.
        start: its pose at first [3, 3], a rotation.
        axis: one of `CLASSES`.
        speed_degrees: that it turns by from frame to frame; negative: the other way.
        sky: colours of the background's top and bottom, RGB.
    """

    plane: Plane
    start: np.ndarray
    axis: str
    speed_degrees: float
    sky: tuple[Sequence[int], Sequence[int]]

    def poses(self, frames: int) -> np.ndarray:
        """Rotations [N, 3, 3]: the start, turned about the airplane's own axis."""
        turned = np.radians(self.speed_degrees) * np.arange(frames)
        return self.start @ np.stack([_rotation(self.axis, angle) for angle in turned])


def make(
    split: str, *, size: int = 64, frames: int = FRAMES, seed: int = 0, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The clips of a split; the same bytes for the same arguments.

    Args:
        split: `"train"` or `"test"`.
        size: S, height and width, at least 16 pixels.
        frames: N, at least 1.
        seed: of all that is random, >= 0; a clip is a function of (seed, split, index).
        count: B, clips from the first on; None: 1,000 or 100, as in the paper.

    Returns:
        Frames [B, N, S, S, 3], RGB, uint8, and labels [B], int64, in order of `CLASSES`, as many of
        each class.

    Raises:
        ValueError: an argument is out of range.

    Reference:
        Section 3 and figure 2.

    >>> clips, labels = make("test", size=32, count=6)
    >>> clips.shape, labels.tolist()
    ((6, 10, 32, 32, 3), [0, 1, 2, 0, 1, 2])
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}. Received: {split!r}")
    count = SPLITS[split] if count is None else count
    for name, value, least in (
        *(("size", size, LEAST_SIZE), ("frames", frames, 1)),
        *(("seed", seed, 0), ("count", count, 1)),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}. Received: {value}")
    clips = np.empty((count, frames, size, size, 3), np.uint8)
    for index in range(count):
        clips[index] = draw(motion(split, index, seed), frames, size)
    return clips, np.arange(count) % len(CLASSES)


def motion(split: str, index: int, seed: int = 0) -> Motion:
    """What happens in a clip, a function of (seed, split, index)."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    top, bottom = rng.integers((60, 110, 160), (150, 190, 250)), rng.integers(150, 240, 3)
    return Motion(
        plane=PLANES[rng.integers(len(PLANES))],
        start=_uniform_rotation(rng),
        axis=CLASSES[index % len(CLASSES)],
        speed_degrees=float(rng.uniform(*SPEED_DEGREES) * rng.choice([-1, 1])),
        sky=(top.tolist(), bottom.tolist()),
    )


def draw(motion: Motion, frames: int, size: int) -> np.ndarray:
    """Frames [N, S, S, 3] of a motion, RGB, uint8.

    Faces that look away are left out, the others are painted from the farthest to the nearest, each
    in its colour times how much of the light it takes.
    """
    faces, colors = _faces(motion.plane)
    rows = np.linspace(0, 1, size * _FINER)[:, None]
    sky = (1 - rows) * motion.sky[0] + rows * motion.sky[1]
    sky = np.repeat(sky.round().astype(np.uint8)[:, None], size * _FINER, axis=1)
    clip = np.empty((frames, size, size, 3), np.uint8)
    for frame, pose in enumerate(motion.poses(frames)):
        picture = sky.copy()
        _paint(picture, faces @ pose.T, colors)
        cv2.resize(picture, (size, size), dst=clip[frame], interpolation=cv2.INTER_AREA)
    return clip


def _paint(picture: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> None:
    """Paints faces [F, 4, 3], seen from far along z, x to the right and y up."""
    normals, centres = _normals(faces), faces.mean(1)
    towards = np.array([0.0, 0.0, _DISTANCE]) - centres
    seen = np.flatnonzero((normals * towards).sum(-1) > 0)
    light = _AMBIENT + (1 - _AMBIENT) * np.maximum(normals @ _LIGHT, 0)
    shades = np.minimum(colors * light[:, None], 255)
    half = len(picture) / 2
    scale = half * _ZOOM * (_DISTANCE - 1) / (_DISTANCE - faces[..., 2])
    corners = half + scale[..., None] * faces[..., :2] * (1, -1)
    corners = np.round(corners * 2**_SUBPIXEL_BITS).astype(np.int32)
    for face in seen[np.argsort(-np.linalg.norm(towards[seen], axis=-1), kind="stable")]:
        cv2.fillConvexPoly(picture, corners[face], shades[face].tolist(), shift=_SUBPIXEL_BITS)


def _faces(plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Faces [F, 4, 3] of an airplane, their corners counterclockwise seen from outside, and their
    colours [F, 3]. Parts are convex, and small enough to be sorted by their distance."""
    profile = ((0.5, 0.0), (0.42, 0.7), (0.3, 1.0), (0.05, 1.0), (-0.2, 0.85), (-0.5, 0.0))
    body = [(x, plane.radius * share) for x, share in profile]
    parts = [(_tube(body, 0.0, 0.0), plane.body)]
    for x, y, z in plane.engines:
        outline = [(x + 0.06, 0.0), (x + 0.05, 0.035), (x - 0.04, 0.035), (x - 0.08, 0.0)]
        parts += [(_tube(outline, side * y, z), _GREY) for side in (1, -1)]
    wing = (plane.wing_x, plane.chord)
    tip = (plane.wing_x - plane.sweep, plane.chord * plane.taper)
    tail, tail_tip = (-0.36, 0.13), (-0.43, 0.07)
    for side, light in ((1, _RED), (-1, _GREEN)):
        across = side * plane.span / 2
        for inner, outer in itertools.pairwise((0.02, 0.2, 0.4, 0.6, 0.8, 0.93, 1.0)):
            slab = _slab(wing, tip, inner * across, outer * across, across)
            parts.append((slab + (0, 0, plane.wing_z), light if outer == 1 else plane.wing))
        across = side * plane.tail_span / 2
        for inner, outer in itertools.pairwise((0.05, 0.5, 1.0)):
            slab = _slab(tail, tail_tip, inner * across, outer * across, across)
            parts.append((slab + (0, 0, 0.02), plane.tail))
    fin = _slab((-0.3, 0.2), (-0.44, 0.08), 0.15 * plane.fin, plane.fin, plane.fin)
    parts.append((fin[..., [0, 2, 1]], plane.tail))
    faces = np.concatenate([_outward(part) for part, _ in parts])
    colors = np.concatenate([np.tile(color, (len(part), 1)) for part, color in parts])
    return faces, colors.astype(np.float64)


def _tube(outline: Sequence[tuple[float, float]], y: float, z: float) -> np.ndarray:
    """Faces [F, 4, 3] around an axis along x, of (x, radius) from front to back."""
    angle = 2 * np.pi * np.arange(_SIDES) / _SIDES
    rings = np.stack(
        [
            np.stack([np.full(_SIDES, x), y + r * np.cos(angle), z + r * np.sin(angle)], axis=-1)
            for x, r in outline
        ]
    )
    following = np.roll(rings, -1, axis=1)
    quads = np.stack([rings[:-1], following[:-1], following[1:], rings[1:]], axis=2)
    return quads.reshape(-1, 4, 3)


def _slab(root, tip, start: float, end: float, full: float) -> np.ndarray:
    """Faces [6, 4, 3] of a part of a wing: (leading edge, chord) at y = 0 and at y = `full`; the
    part lies between `start` and `end`."""
    corners = []
    for y in (start, end):
        share = y / full
        edge, chord = (a + share * (b - a) for a, b in zip(root, tip, strict=True))
        for x in (edge, edge - chord):
            corners += [(x, y, _THICK * chord / 2), (x, y, -_THICK * chord / 2)]
    # Corners by bits: end, trailing edge, below.
    order = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    return np.array(corners)[np.array(order)]


def _outward(faces: np.ndarray) -> np.ndarray:
    """The faces of a convex part with their corners counterclockwise seen from outside."""
    out = faces.mean(1) - faces.reshape(-1, 3).mean(0)
    inside_out = (_normals(faces) * out).sum(-1) < 0
    return np.where(inside_out[:, None, None], faces[:, ::-1], faces)


def _normals(faces: np.ndarray) -> np.ndarray:
    """Unit normals [F, 3], to where the corners run counterclockwise; triangles are faces with two
    corners in one place."""
    normals = np.cross(faces[:, 2] - faces[:, 0], faces[:, 3] - faces[:, 1])
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def _rotation(axis: str, angle: float) -> np.ndarray:
    """Rotation [3, 3] about one of the airplane's axes, radians."""
    return cv2.Rodrigues(angle * np.array(_AXES[axis]))[0]


def _uniform_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation [3, 3], uniform over all: that of a normal random quaternion."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
