"""Paints a scene from `scenes` at any size: pixels for the eye, and masks for the ground truth.

Outlines and fills are distances to an edge, which fade over one pixel: edges are anti-aliased and
one scene looks the same at every size. Pixels go through sums, products and square roots only, all
of which IEEE 754 rounds in one way, so pictures are the same to the bit on every platform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from polysem.data.dice import uniforms
from polysem.data.layout import sample
from polysem.data.scenes import Backdrop, Scene, Thing

__all__ = ["VERSION", "draw", "owners", "paint"]

#: Goes up whenever any pixel of any scene changes; part of the data's fingerprint.
VERSION = 1

#: The darker tone of a patterned fill, relative to the object's colour.
SHADE = 0.55
#: Every object has a contour of this colour, this wide in radii of the disc with its area.
INK, CONTOUR = (22, 22, 26), 0.085

#: float32 [y, x]
Plane = npt.NDArray[np.floating[Any]]
Window = tuple[slice, slice]


def draw(scene: Scene, size: int) -> npt.NDArray[np.uint8]:
    """Return the picture of a scene as RGB, uint8 [y, x, 3], `size` pixels wide and high."""
    canvas = _backdrop(scene.backdrop, size)
    for number in scene.order:
        thing = scene.things[number]
        window, distance = _distance(thing, size)
        cover = _fade(distance, thing.radius * size)
        inner = _fade(distance + np.float32(CONTOUR), thing.radius * size)
        tone = inner * _fill(thing, window, size)
        contour = 1 - inner
        for channel, (level, ink) in enumerate(zip(thing.rgb, INK, strict=True)):
            part = canvas[channel][window]
            part += cover * (tone * np.float32(level) + contour * np.float32(ink) - part)
    canvas += np.float32(0.5)
    np.clip(canvas, 0, 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))


def owners(scene: Scene, size: int) -> npt.NDArray[np.uint8]:
    """Return whose each pixel is, uint8 [y, x]: 0 the background's, 1 the first object's, ….

    A pixel is an object's if the object covers at least half of it and none in front does.
    """
    owner = np.zeros((size, size), dtype=np.uint8)
    for number in scene.order:
        window, distance = _distance(scene.things[number], size)
        owner[window][distance <= 0] = number + 1
    return owner


def paint(key: int, indices: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    """Return the pictures of many scenes of one stream, uint8 [image, y, x, 3]."""
    table = sample(key, indices)
    pictures = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    for row in range(len(indices)):
        pictures[row] = draw(table.scene(row), size)
    return pictures


# --- objects ------------------------------------------------------------------------------------


def _distance(thing: Thing, size: int) -> tuple[Window, Plane]:
    """Return the pixels that the object may touch, and their distance to its edge in radii."""
    outline, reach = _OUTLINES[thing.shape]
    half = thing.radius * reach * size + 1
    window = (_span(thing.y * size, half, size), _span(thing.x * size, half, size))
    u, v = _turned(thing.x, thing.y, thing.turn, 1 / thing.radius, window, size)
    return window, outline(u, v)


def _span(centre: float, half: float, size: int) -> slice:
    return slice(max(int(centre - half), 0), min(int(centre + half) + 2, size))


def _turned(
    x: float, y: float, turn: float, scale: float, window: Window, size: int
) -> tuple[Plane, Plane]:
    """Return coordinates [y, x] around a centre, turned and scaled, of pixels' middles."""
    rows, columns = window
    down = (np.arange(rows.start, rows.stop) + 0.5) / size - y
    right = (np.arange(columns.start, columns.stop) + 0.5) / size - x
    cosine, sine = (part * scale for part in _cosine_and_sine(turn))
    u = (right * cosine).astype(np.float32) + (down * sine).astype(np.float32)[:, None]
    v = (right * -sine).astype(np.float32) + (down * cosine).astype(np.float32)[:, None]
    return u, v


def _cosine_and_sine(turn: float) -> tuple[float, float]:
    """Return both for an angle in full turns: by series, as libraries differ in last bits."""
    quarter, rest = divmod(4 * turn, 1)
    angle = rest * (math.pi / 2)
    cosine, sine = 1.0, 1.0
    for term in range(16, 0, -2):
        cosine = 1 - cosine * angle * angle / (term * (term - 1))
        sine = 1 - sine * angle * angle / (term * (term + 1))
    sine *= angle
    return ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[int(quarter) % 4]


def _fade(distance: Plane, pixels: float) -> Plane:
    """Return how much of a pixel lies inside of an edge; `pixels` is one unit of `distance`."""
    inside: Plane = np.float32(0.5) - distance * np.float32(pixels)
    return np.clip(inside, 0, 1, out=inside)


def _length(u: Plane, v: Plane) -> Plane:
    length: Plane = np.sqrt(u * u + v * v)
    return length


# Outlines: distance to the edge, negative inside, exact near the edge. One unit is the radius of
# the disc with the same area. Beside each: how far it reaches from its centre.


def _circle(u: Plane, v: Plane) -> Plane:
    return _length(u, v) - 1


def _square(u: Plane, v: Plane) -> Plane:
    outside: Plane = np.maximum(abs(u), abs(v)) - 0.8862
    return outside


def _triangle(u: Plane, v: Plane) -> Plane:
    outside: Plane = np.maximum(v, abs(u) * 0.8660254 - v * 0.5) - 0.7776
    return outside


def _star(u: Plane, v: Plane) -> Plane:
    """Fold the plane twice, down to the tenth of the star between a tip and a notch."""
    u, v = _mirrored(abs(u), -v, 0.80901699, -0.58778525)
    u, v = _mirrored(u, v, -0.80901699, -0.58778525)
    return abs(u) * 0.9080571 + v * 0.4188462 - 0.6250498


def _mirrored(u: Plane, v: Plane, right: float, down: float) -> tuple[Plane, Plane]:
    """Mirror what lies beyond the line through 0 with this normal."""
    beyond = 2 * np.maximum(u * right + v * down, 0)
    return u - beyond * right, v - beyond * down


def _cross(u: Plane, v: Plane) -> Plane:
    u, v = abs(u), abs(v)
    outside: Plane = np.maximum(np.minimum(u, v) - 0.4152, np.maximum(u, v) - 1.1534)
    return outside


def _ring(u: Plane, v: Plane) -> Plane:
    return abs(_length(u, v) - 0.866) - 0.2887


def _heart(u: Plane, v: Plane) -> Plane:
    """Join a square and a disc on each of two of its sides."""
    u, v = (u - v) * 0.70710678 + 0.2078, (u + v) * -0.70710678 + 0.2078
    lobes = np.minimum(_length(u - 0.6632, v), _length(u, v - 0.6632))
    outside: Plane = np.minimum(np.maximum(abs(u), abs(v)), lobes) - 0.6632
    return outside


def _crescent(u: Plane, v: Plane) -> Plane:
    bite = 1.0298 - _length(u - 0.6866, v)
    outside: Plane = np.maximum(_length(u, v) - 1.3731, bite)
    return outside


_OUTLINES: dict[str, tuple[Callable[[Any, Any], Plane], float]] = {
    "circle": (_circle, 1.0),
    "square": (_square, 1.2534),
    "triangle": (_triangle, 1.5552),
    "star": (_star, 1.5),
    "cross": (_cross, 1.226),
    "ring": (_ring, 1.1548),
    "heart": (_heart, 1.24),
    "crescent": (_crescent, 1.3732),
}


# --- fills --------------------------------------------------------------------------------------


def _fill(thing: Thing, window: Window, size: int) -> Plane | np.float32:
    """Return the brightness of the object's surface, from `SHADE` to 1."""
    if thing.texture == "solid":
        return np.float32(1)
    if thing.texture == "shaded":
        across, _ = _turned(thing.x, thing.y, thing.fill_turn, 0.5 / thing.radius, window, size)
        dark = np.clip(across + np.float32(0.5), 0, 1)
    else:
        period = 0.05 + 0.22 * thing.radius
        u, v = _turned(thing.x, thing.y, thing.fill_turn, 1 / period, window, size)
        u += np.float32(thing.fill_shift[0])
        v += np.float32(thing.fill_shift[1])
        dark = _PATTERNS[thing.texture](u, v, period * size)
    tone: Plane = 1 - dark * np.float32(1 - SHADE)
    return tone


def _from_middle(phase: Plane) -> Plane:
    """Return the distance to the middle of the period, 0 to 0.5."""
    distance: Plane = abs(phase - np.floor(phase) - np.float32(0.5))
    return distance


def _striped(u: Plane, v: Plane, pixels: float) -> Plane:
    return _fade(_from_middle(u) - np.float32(0.25), pixels)


def _dotted(u: Plane, v: Plane, pixels: float) -> Plane:
    return _fade(_length(_from_middle(u), _from_middle(v)) - np.float32(0.31), pixels)


def _checkered(u: Plane, v: Plane, pixels: float) -> Plane:
    # half the frequency: a square of the board is then as wide as a stripe and a half
    one = _fade(_from_middle(u * np.float32(0.7)) - np.float32(0.25), pixels / 0.7)
    other = _fade(_from_middle(v * np.float32(0.7)) - np.float32(0.25), pixels / 0.7)
    return one + other - 2 * one * other


_PATTERNS: dict[str, Callable[[Plane, Plane, float], Plane]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
}


# --- backgrounds --------------------------------------------------------------------------------


def _backdrop(backdrop: Backdrop, size: int) -> Plane:
    """Return the canvas before any object, [3, y, x] in 8-bit levels."""
    relief = _RELIEFS[backdrop.kind](backdrop, size) * np.float32(backdrop.contrast)
    middle = (np.arange(size) + 0.5) / size - 0.5
    relief += (middle * backdrop.slope[0]).astype(np.float32)
    relief += (middle * backdrop.slope[1]).astype(np.float32)[:, None]
    base = np.array(backdrop.rgb, dtype=np.float32)
    canvas: Plane = relief + base[:, None, None]
    return canvas


def _whole(backdrop: Backdrop, period: float, size: int) -> tuple[Plane, Plane]:
    window = (slice(0, size), slice(0, size))
    u, v = _turned(0.5, 0.5, backdrop.turn, 1 / period, window, size)
    return u + np.float32(backdrop.shift[0]), v + np.float32(backdrop.shift[1])


def _cloudy(backdrop: Backdrop, size: int) -> Plane:
    cells = 3 + int(3 * backdrop.period)
    coarse = _noise(backdrop.noise, cells, size)
    return coarse * 1.1 + _noise(backdrop.noise ^ 1, 2 * cells + 1, size) * 0.5


def _grainy(backdrop: Backdrop, size: int) -> Plane:
    return _noise(backdrop.noise, 24 + int(8 * backdrop.period), size) * 1.2


def _wavy(backdrop: Backdrop, size: int) -> Plane:
    period = 0.11 + 0.08 * backdrop.period
    u, v = _whole(backdrop, period, size)
    bend = _wave(v * np.float32(0.36))
    return _wave(u + bend * np.float32(0.3))


def _wave(phase: Plane) -> Plane:
    """Return a smooth wave between −1 and 1 with period 1; a cubic, near enough to a cosine."""
    rise = 2 * _from_middle(phase)
    return rise * rise * (6 - 4 * rise) - 1


def _gridded(backdrop: Backdrop, size: int) -> Plane:
    period = 0.13 + 0.07 * backdrop.period
    u, v = _whole(backdrop, period, size)
    nearest = np.minimum(_from_middle(u), _from_middle(v))
    return 1.6 * _fade(nearest - np.float32(0.09), period * size) - 0.4


def _bricked(backdrop: Backdrop, size: int) -> Plane:
    period = 0.12 + 0.06 * backdrop.period
    u, v = _whole(backdrop, period, size)
    row = np.floor(v)
    along = (u + row) * np.float32(0.5)
    joint = np.minimum(2 * _from_middle(along), _from_middle(v - np.float32(0.5)))
    return 1.6 * _fade(joint - np.float32(0.08), period * size) - 0.4


def _noise(key: int, cells: int, size: int) -> Plane:
    """Return smooth noise between −1 and 1: random heights at lattice points, blended between."""
    heights = 2 * uniforms(np.array([key], dtype=np.uint64), (cells + 1) ** 2) - 1
    lattice = heights.astype(np.float32).reshape(cells + 1, cells + 1)
    place = (np.arange(size) + 0.5) * (cells / size)
    cell = place.astype(np.int64)
    rest = (place - cell).astype(np.float32)
    rest = rest * rest * (3 - 2 * rest)
    rows = lattice[cell] + (lattice[cell + 1] - lattice[cell]) * rest[:, None]
    before = rows[:, cell]
    blended: Plane = before + (rows[:, cell + 1] - before) * rest
    return blended


_RELIEFS: dict[str, Callable[[Backdrop, int], Plane]] = {
    "cloudy": _cloudy,
    "wavy": _wavy,
    "grainy": _grainy,
    "gridded": _gridded,
    "bricked": _bricked,
}
