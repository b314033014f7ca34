"""Pictures of coloured shapes: what stands where (``make_scene``) and its pixels (``draw``).

Everything is a pure function of (seed, split, index), so any picture can be made alone, by any
process, in any order. The noise reads the raw bits of the generator through a table, and its
spread is bounded (``NOISE_LIMIT``): what is object and what is background can be decided exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from xvlm_core.errors import UsageError

Size = Literal["small", "large"]
Pair = tuple[str, str]
"""A colour and a shape, by name."""

SPLITS = ("train", "val", "test", "unseen")
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 35),
    "green": (30, 165, 60),
    "blue": (45, 75, 235),
    "yellow": (240, 225, 40),
    "orange": (245, 130, 15),
    "purple": (135, 40, 185),
    "cyan": (60, 215, 225),
    "pink": (250, 140, 200),
}
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
UNSEEN_PAIRS: tuple[Pair, ...] = (
    ("red", "star"),
    ("green", "triangle"),
    ("blue", "diamond"),
    ("yellow", "circle"),
    ("orange", "cross"),
    ("purple", "square"),
    ("cyan", "star"),
    ("pink", "triangle"),
)
"""Every colour once and every shape at least once: each part is known, the combination is not."""
SEEN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in UNSEEN_PAIRS)

DEFAULT_SIZE_PX = 128
SMALLEST_SIZE_PX = 64
SMALL_PX = (17, 23)
LARGE_PX = (32, 42)
"""Longest side of a shape (both ends included) in a picture of ``DEFAULT_SIZE_PX``."""

BACKGROUND_GREY = (40, 99)
NOISE_SIGMA = 6.0
_STRIPE_RGB = (245, 245, 245)
_GAP_PX = 2
_COUNTS = (2, 3, 4, 5, 6)
_COUNT_LIMITS = (0.1, 0.35, 0.65, 0.9, 1.0)  # cumulative; the mean is 4

_NOISE = np.array(
    [round(NOISE_SIGMA * NormalDist().inv_cdf((i + 0.5) / 256)) for i in range(256)], np.int16
)
NOISE_LIMIT = int(_NOISE.max())
"""No channel of no pixel is further from its clean value than this."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shape:
    """One object. ``box_xyxy_px`` is half-open and tight around the drawn pixels."""

    shape: str
    colour: str
    size: Size
    striped: bool
    box_xyxy_px: tuple[float, float, float, float]
    diameter_px: int

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.colour, self.shape

    @property
    def centre_xy_px(self) -> tuple[float, float]:
        """Middle of the box."""
        x1, y1, x2, y2 = self.box_xyxy_px
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def side_px(self) -> float:
        """Longest side of the box."""
        x1, y1, x2, y2 = self.box_xyxy_px
        return max(x2 - x1, y2 - y1)

    def describe(self) -> dict[str, Any]:
        """The object as plain JSON values."""
        return {
            "shape": self.shape,
            "colour": self.colour,
            "size": self.size,
            "striped": self.striped,
            "box_xyxy_px": list(self.box_xyxy_px),
        }


@dataclass(frozen=True)
class Scene:
    """What a picture shows: a grey background, some non-overlapping shapes, a noise seed."""

    width: int
    height: int
    background: int
    shapes: tuple[Shape, ...]
    noise_seed: int


def generator(seed: int, split: str, index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one picture; independent for each (seed, split, index, stream).

    Raises:
        UsageError: an unknown split, or a negative seed or index.
    """
    if split not in SPLITS:
        raise UsageError(f"the world has no split {split!r}", try_=f"one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise UsageError(f"seed and index of the world must be 0 or more, not {seed}, {index}")
    spawn_key = (stream,) if stream else ()
    sequence = np.random.SeedSequence((seed, SPLITS.index(split), index), spawn_key=spawn_key)
    return np.random.Generator(np.random.PCG64(sequence))


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """One of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def sample(rng: np.random.Generator, options: Sequence[_T], count: int) -> list[_T]:
    """Up to ``count`` different options in random order."""
    pool = list(options)
    count = min(count, len(pool))
    for i in range(count):
        j = i + int(rng.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]


def pairs_of(split: str) -> tuple[Pair, ...]:
    """The colour-shape pairs that pictures and texts of a split may name."""
    return PAIRS if split == "unseen" else SEEN_PAIRS


def make_scene(seed: int, split: str, index: int, size: int = DEFAULT_SIZE_PX) -> Scene:
    """The scene number ``index`` of a split, ``size`` x ``size`` px.

    Colours and shapes are re-used within a picture more often than chance, so that a name alone
    often does not say which object is meant. Pairs of ``UNSEEN_PAIRS`` stand only in the split
    ``unseen``, at least one in every picture.

    Raises:
        UsageError: an unknown split, a negative seed or index, or a size below
            ``SMALLEST_SIZE_PX``.
    """
    if size < SMALLEST_SIZE_PX:
        raise UsageError(
            f"pictures of the world need at least {SMALLEST_SIZE_PX} px, not {size}",
            try_=f"a size of {DEFAULT_SIZE_PX}",
        )
    rng = generator(seed, split, index)
    draw_count = rng.random()
    count = next(n for n, limit in zip(_COUNTS, _COUNT_LIMITS, strict=True) if draw_count < limit)
    looks = _looks(rng, count, split)
    shapes = _place(rng, looks, size)
    low, high = BACKGROUND_GREY
    background = low + int(rng.random() * (high - low + 1))
    return Scene(size, size, background, shapes, int(rng.random() * 2**32))


@dataclass(frozen=True)
class _Look:
    colour: str
    shape: str
    size: Size
    striped: bool


def _looks(rng: np.random.Generator, count: int, split: str) -> list[_Look]:
    colours = tuple(COLOURS)
    allowed = frozenset(pairs_of(split))
    looks: list[_Look] = []
    while len(looks) < count:
        size: Size = "small" if rng.random() < 0.5 else "large"
        striped = bool(rng.random() < 0.25)
        if not looks:
            colour, shape = pick(rng, UNSEEN_PAIRS if split == "unseen" else SEEN_PAIRS)
        elif rng.random() < 0.15:
            twin = pick(rng, looks)
            colour, shape = twin.colour, twin.shape
            if rng.random() < 0.5:
                size = "small" if twin.size == "large" else "large"
        else:
            reuse_colour, reuse_shape = rng.random() < 0.3, rng.random() < 0.3
            colour = pick(rng, looks).colour if reuse_colour else pick(rng, colours)
            shape = pick(rng, looks).shape if reuse_shape else pick(rng, SHAPES)
            if (colour, shape) not in allowed:
                continue
        looks.append(_Look(colour, shape, size, striped))
    return sample(rng, looks, count)


def _place(rng: np.random.Generator, looks: list[_Look], size: int) -> tuple[Shape, ...]:
    """Give each look a place; the largest are placed first, a full picture starts again."""
    scale = size / DEFAULT_SIZE_PX
    for attempt in range(1000):
        diameters = []
        for look in looks:
            low, high = SMALL_PX if look.size == "small" else LARGE_PX
            if attempt > 20:
                high = low  # crowded: make room
            diameters.append(round(scale * (low + int(rng.random() * (high - low + 1)))))
        boxes: dict[int, tuple[int, int, int, int]] = {}
        for i in sorted(range(len(looks)), key=lambda i: -diameters[i]):
            height, width = _mask(looks[i].shape, diameters[i]).shape
            box = _free_box(rng, list(boxes.values()), width, height, size)
            if box is None:
                break
            boxes[i] = box
        else:
            shapes = []
            for i, look in enumerate(looks):
                x1, y1, x2, y2 = (float(v) for v in boxes[i])
                box_xyxy_px = (x1, y1, x2, y2)
                shapes.append(
                    Shape(
                        look.shape, look.colour, look.size, look.striped, box_xyxy_px, diameters[i]
                    )
                )
            return tuple(shapes)
    raise AssertionError(f"no room for {looks} in {size} px")


def _free_box(
    rng: np.random.Generator,
    taken: list[tuple[int, int, int, int]],
    width: int,
    height: int,
    size: int,
) -> tuple[int, int, int, int] | None:
    for _ in range(30):
        x1 = int(rng.random() * (size - width + 1))
        y1 = int(rng.random() * (size - height + 1))
        x2, y2 = x1 + width, y1 + height
        if all(
            x1 >= c + _GAP_PX or x2 + _GAP_PX <= a or y1 >= d + _GAP_PX or y2 + _GAP_PX <= b
            for a, b, c, d in taken
        ):
            return x1, y1, x2, y2
    return None


def _outline(shape: str, side: int) -> npt.NDArray[np.bool_]:
    """The shape in a ``side`` x ``side`` raster, decided at the pixel centres."""
    centres = (2 * np.arange(side) + 1 - side) / side
    u, v = centres[None, :], centres[:, None]
    if shape == "circle":
        return np.asarray(u**2 + v**2 <= 1)
    if shape == "square":
        return np.ones((side, side), bool)
    if shape == "triangle":
        return np.asarray(np.abs(u) <= (v + 1) / 2)
    if shape == "diamond":
        return np.asarray(np.abs(u) + np.abs(v) <= 1 + 1e-9)
    if shape == "cross":
        return np.asarray((np.abs(u) <= 0.34) | (np.abs(v) <= 0.34))
    assert shape == "star", shape
    angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
    radii = [1.0 if k % 2 == 0 else 0.45 for k in range(10)]
    points = np.array(
        [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    )
    low, high = points.min(0), points.max(0)
    points = np.round(2 * (points - low) / (high - low) - 1, 9)
    inside = np.zeros((side, side), bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:  # even-odd rule: count the edges to the right of the pixel centre
            crosses = (v < y1) != (v < y2)
            inside ^= crosses & (u < x1 + (v - y1) * (x2 - x1) / (y2 - y1))
    return inside


@lru_cache(maxsize=4096)
def _mask(shape: str, diameter: int) -> npt.NDArray[np.bool_]:
    """The drawn pixels, cropped tight; the longest side is ``diameter`` or a pixel more."""
    for side in range(diameter, 2 * diameter):
        mask = _outline(shape, side)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if max(mask.shape) >= diameter:
            mask.setflags(write=False)
            return mask
    raise AssertionError(f"no {shape} of {diameter} px")


@lru_cache(maxsize=4096)
def _patch(
    shape: str, colour: str, striped: bool, diameter: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int16]]:
    """The mask ``(h, w, 1)`` and the clean pixels ``(h, w, 3)`` of an object."""
    mask = _mask(shape, diameter)
    height, width = mask.shape
    pixels = np.empty((height, width, 3), np.int16)
    pixels[:] = COLOURS[colour]
    if striped:
        stripe = max(2, round(0.15 * diameter))
        diagonal = np.arange(height)[:, None] + np.arange(width)[None, :]
        pixels[(diagonal // stripe) % 2 == 1] = _STRIPE_RGB
    return mask[:, :, None], pixels


def draw(scene: Scene) -> npt.NDArray[np.uint8]:
    """The pixels of a scene: uint8 ``(height, width, 3)``, RGB."""
    canvas = np.full((scene.height, scene.width, 3), scene.background, np.int16)
    for shape in scene.shapes:
        x1, y1, x2, y2 = (int(v) for v in shape.box_xyxy_px)
        mask, pixels = _patch(shape.shape, shape.colour, shape.striped, shape.diameter_px)
        np.copyto(canvas[y1:y2, x1:x2], pixels, where=mask)
    words = np.random.PCG64(scene.noise_seed).random_raw(-(-canvas.size // 8))
    raw_bytes = words.astype("<u8", copy=False).view(np.uint8)[: canvas.size]
    canvas += _NOISE[raw_bytes].reshape(canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)
