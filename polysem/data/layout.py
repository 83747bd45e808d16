"""Decides what each drawn image shows: makes the `scenes` of a stream, for `drawing` to paint.

Scenes are sampled column by column for many images at once, each from its own random key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polysem.data.dice import keys_of, uniforms
from polysem.data.scenes import CONCEPTS, PALETTE, Backdrop, Scene, Thing

__all__ = ["MOST_THINGS", "SceneTable", "sample", "sample_kinds"]

MOST_THINGS = 3
#: An object's colour strays from the palette by at most this much in each channel.
JITTER = 10
#: Radius of the disc with the object's area, for small, medium and large objects.
RADII = ((0.08, 0.11), (0.17, 0.2), (0.24, 0.28))
#: Share of images with at least two and with three objects.
TWO_THINGS, THREE_THINGS = 0.5, 0.2
#: Objects lean to either side by at most this much of a full turn. Were any rotation allowed, no
#: part of an outline would tell shapes apart by its direction, and small networks trained for
#: minutes stay at chance.
LEAN = 1 / 18
#: The largest object's radius is at least this multiple of any other.
LEAD = 1.4
#: Centres stay this many radii inside the image, and this many summed radii apart if they can.
MARGIN, APART = 1.1, 1.05

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

_TRIES = 48
_IMAGE_DRAWS, _THING_DRAWS = 16, 14


@dataclass(frozen=True)
class SceneTable:
    """Many scenes as columns; objects beyond an image's `count` are there but not shown.

    Attributes
    ----------
    key : uint64 array [image]
        The random key of each image.
    count : int array [image]
        Number of objects shown.
    kinds : dict of int array [image, thing]
        For "shape", "colour", "texture" and "size": index of the name in `CONCEPTS`. For
        "background": [image].
    radius : float array [image, thing]
        See `Thing`.
    centre : float array [image, thing, 2]
        x and y, see `Thing`.
    image_draws, thing_draws : float arrays [image, draw] and [image, thing, draw]
        Uniform numbers behind everything else.
    """

    key: npt.NDArray[np.uint64]
    count: Int
    kinds: dict[str, Int]
    radius: Float
    centre: Float
    image_draws: Float
    thing_draws: Float

    def scene(self, row: int) -> Scene:
        """Return one row as a scene."""
        count = int(self.count[row])
        draws = self.thing_draws[row].tolist()
        order = sorted(range(count), key=lambda number: (draws[number][13], number))
        things = tuple(self._thing(row, number, draws[number]) for number in range(count))
        return Scene(things, tuple(order), self._backdrop(row))

    def _thing(self, row: int, number: int, draws: list[float]) -> Thing:
        shape, colour, texture, size = (
            CONCEPTS[group][self.kinds[group][row, number]]
            for group in ("shape", "colour", "texture", "size")
        )
        red, green, blue = (
            base + int(draw * (2 * JITTER + 1)) - JITTER
            for base, draw in zip(PALETTE[colour], draws[8:11], strict=True)
        )
        x, y = self.centre[row, number].tolist()
        return Thing(
            shape=shape,
            colour=colour,
            texture=texture,
            size=size,
            x=x,
            y=y,
            radius=float(self.radius[row, number]),
            turn=LEAN * (2 * draws[6] - 1),
            fill_turn=draws[7],
            fill_shift=(draws[11], draws[12]),
            rgb=(min(red, 255), min(green, 255), min(blue, 255)),
        )

    def _backdrop(self, row: int) -> Backdrop:
        draws = self.image_draws[row].tolist()
        grey = 92 + int(draws[2] * 76)
        red, green, blue = (grey + int(draw * 33) - 16 for draw in draws[3:6])
        return Backdrop(
            kind=CONCEPTS["background"][self.kinds["background"][row]],
            rgb=(red, green, blue),
            contrast=(7 + 11 * draws[6]) * (1 if draws[7] < 0.5 else -1),
            slope=(24 * draws[8] - 12, 24 * draws[9] - 12),
            period=draws[10],
            turn=draws[11],
            shift=(draws[12], draws[13]),
            noise=int(self.key[row]),
        )


def sample_kinds(key: int, indices: Int) -> tuple[Int, dict[str, Int]]:
    """Return `count` and `kinds` of a `SceneTable` without laying out the scenes."""
    draws = uniforms(keys_of(key, indices), _IMAGE_DRAWS + MOST_THINGS * _THING_DRAWS)
    return _kinds(*_split(draws))


def sample(key: int, indices: Int) -> SceneTable:
    """Return the scenes with these numbers from the stream that `key` names.

    A scene depends on the key and its own number only. Shape, colour, texture and background are
    independent and uniform, and independent of sizes and places; sizes and places depend on each
    other, so that the first object is clearly the largest and all can be seen.
    """
    keys = keys_of(key, indices)
    fixed = _IMAGE_DRAWS + MOST_THINGS * _THING_DRAWS
    draws = uniforms(keys, fixed + _TRIES * MOST_THINGS * 2)
    image, things = _split(draws)
    count, kinds = _kinds(image, things)
    radius = _radii(kinds["size"], things[..., 4])
    tries = draws[:, fixed:].reshape(-1, _TRIES, MOST_THINGS, 2)
    centre = _centres(tries, radius, count)
    return SceneTable(keys, count, kinds, radius, centre, image.copy(), things.copy())


def _split(
    draws: Float,
) -> tuple[Float, Float]:
    things = draws[:, _IMAGE_DRAWS : _IMAGE_DRAWS + MOST_THINGS * _THING_DRAWS]
    return draws[:, :_IMAGE_DRAWS], things.reshape(-1, MOST_THINGS, _THING_DRAWS)


def _kinds(image: Float, things: Float) -> tuple[Int, dict[str, Int]]:
    kinds = {
        group: (things[..., column] * len(CONCEPTS[group])).astype(np.int64)
        for column, group in enumerate(("shape", "colour", "texture"))
    }
    # the first object leads: medium or large; the second may be medium if the first is large
    large = things[:, 0, 3] < 0.6
    second = large & (things[:, 1, 3] < 0.3)
    size = np.stack([1 + large, second, np.zeros_like(large)], axis=1).astype(np.int64)
    background = (image[:, 1] * len(CONCEPTS["background"])).astype(np.int64)
    count = 1 + (image[:, 0] < TWO_THINGS).astype(np.int64) + (image[:, 0] < THREE_THINGS)
    return count, kinds | {"size": size, "background": background}


def _radii(size: Int, within: Float) -> Float:
    """Return radii [image, thing] for size classes and a place `within` the range of each."""
    low, high = np.array(RADII).T
    low, high = low[size], high[size]
    lead = low[:, 0] + within[:, 0] * (high - low)[:, 0]
    high[:, 1] = np.minimum(high[:, 1], lead / LEAD)
    radius: Float = low + within * (high - low)
    radius[:, 0] = lead
    return radius


def _centres(
    tries: Float,
    radius: Float,
    count: Int,
) -> Float:
    """Return centres [image, thing, 2] from `tries` [image, try, thing, 2].

    The first try whose first two objects are apart places both, then the first that keeps the third
    away from them places that one; where no try will do, the one that comes nearest.
    """
    tries = tries.copy()
    # if all else fails, opposite corners keep the first two apart
    tries[:, -1, 0] *= 0.1
    tries[:, -1, 1] = 1 - 0.1 * tries[:, -1, 1]
    margin = MARGIN * radius[:, None, :, None]
    centre = margin + tries * (1 - 2 * margin)
    gap = _gap(centre[:, :, 0], centre[:, :, 1], radius[:, 0] + radius[:, 1])
    placed = _first_apart(centre[:, :, :2], np.where((count > 1)[:, None], gap, np.inf))
    third = centre[:, :, 2]
    gap = np.minimum(
        _gap(third, placed[:, None, 0], radius[:, 0] + radius[:, 2]),
        _gap(third, placed[:, None, 1], radius[:, 1] + radius[:, 2]),
    )
    return np.concatenate([placed, _first_apart(third, gap)[:, None]], axis=1)


def _gap(one: Float, other: Float, reach: Float) -> Float:
    way = one - other
    gap: Float = np.sqrt(way[..., 0] ** 2 + way[..., 1] ** 2) / reach[:, None]
    return gap


def _first_apart(centre: Float, gap: Float) -> Float:
    # of equals argmax returns the first: the first try that is far enough apart
    chosen = np.argmax(np.minimum(gap, APART), axis=1)
    placed: Float = centre[np.arange(len(centre)), chosen]
    return placed
