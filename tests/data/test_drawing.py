"""Pixels are compared with point-in-shape tests in float64, written from the geometry."""

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.data import drawing
from polysem.data.dice import fold
from polysem.data.layout import sample
from polysem.data.scenes import CONCEPTS, Backdrop, Scene, Thing

GREY = Backdrop("cloudy", (120, 120, 120), 0.0, (0.0, 0.0), 0.5, 0.0, (0.0, 0.0), 7)
THING = Thing(
    "circle", "red", "solid", "large", 0.47, 0.55, 0.25, 0.0, 0.0, (0.0, 0.0), (200, 40, 40)
)

Points = npt.NDArray[np.float64]
Inside = npt.NDArray[np.bool_]


def polygon(corners: list[tuple[float, float]]) -> Callable[[Points, Points], Inside]:
    def inside(u: Points, v: Points) -> Inside:
        crossings = np.zeros(u.shape, dtype=np.bool_)
        for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if v0 != v1:
                spans = (v0 > v) != (v1 > v)
                crossings ^= spans & (u < u0 + (v - v0) * (u1 - u0) / (v1 - v0))
        return crossings

    return inside


def around(angle: float, radius: float) -> tuple[float, float]:
    return radius * math.sin(angle), radius * math.cos(angle)


def disc(u: float, v: float, radius: float) -> Callable[[Points, Points], Inside]:
    return lambda x, y: np.hypot(x - u, y - v) < radius


def upright(heart: Callable[[Points, Points], Inside]) -> Callable[[Points, Points], Inside]:
    """Turn a heart whose tip lies at 225° on its tip: down, the way that v grows."""
    angle = math.radians(135)
    return lambda u, v: heart(
        u * -math.cos(angle) - v * math.sin(angle), -u * math.sin(angle) + v * math.cos(angle)
    )


def geometry() -> dict[str, Callable[[Points, Points], Inside]]:
    """Each shape with the area of the unit disc, π."""
    half = math.sqrt(math.pi) / 2
    side = math.sqrt(math.pi / (3 * math.sqrt(3) / 4))
    tip = math.sqrt(math.pi / (5 * math.sin(math.pi / 5) * 0.48))
    star = [around(math.pi + k * math.pi / 5, tip * (0.48 if k % 2 else 1)) for k in range(10)]
    arm = math.sqrt(math.pi / (8 * 0.36 - 4 * 0.36**2))
    beam = 0.36 * arm
    lobe = math.sqrt(math.pi / (4 + math.pi))
    middle = lobe**3 * (math.pi / 2 + 2 / 3) / math.pi
    corner = lobe + middle
    square = [(-corner, -corner), (lobe - middle, -corner)]
    square += [(lobe - middle, lobe - middle), (-corner, lobe - middle)]
    lobes = (disc(lobe - middle, -middle, lobe), disc(-middle, lobe - middle, lobe))
    outer = math.sqrt(4 / 3)
    return {
        "circle": disc(0, 0, 1),
        "square": polygon([(-half, -half), (half, -half), (half, half), (-half, half)]),
        "triangle": polygon([around(math.pi + k * 2 * math.pi / 3, side) for k in range(3)]),
        "star": polygon(star),
        "cross": lambda u, v: (
            (np.minimum(abs(u), abs(v)) < beam) & (np.maximum(abs(u), abs(v)) < arm)
        ),
        "ring": lambda u, v: disc(0, 0, outer)(u, v) & ~disc(0, 0, outer / 2)(u, v),
        "heart": upright(lambda u, v: polygon(square)(u, v) | lobes[0](u, v) | lobes[1](u, v)),
        "crescent": lambda u, v: disc(0, 0, 1.3731)(u, v) & ~disc(0.6866, 0, 1.0298)(u, v),
    }


def whole_cover(thing: Thing, size: int) -> npt.NDArray[np.float64]:
    cover = np.zeros((size, size))
    window, distance = drawing._distance(thing, size)
    cover[window] = drawing._fade(distance, thing.radius * size)
    return cover


@pytest.mark.parametrize("shape", CONCEPTS["shape"])
@pytest.mark.parametrize("turn", [0.0, 0.04, -0.13])
def test_cover_is_the_share_of_each_pixel_inside_the_shape(shape: str, turn: float) -> None:
    thing, size, fine = replace(THING, shape=shape, turn=turn), 48, 16
    middle = (np.arange(size * fine) + 0.5) / (size * fine)
    right, down = (middle - thing.x)[None, :] / 0.25, (middle - thing.y)[:, None] / 0.25
    angle = 2 * math.pi * turn
    u = right * math.cos(angle) + down * math.sin(angle)
    v = down * math.cos(angle) - right * math.sin(angle)
    inside = geometry()[shape](u, v).reshape(size, fine, size, fine).mean(axis=(1, 3))
    cover = whole_cover(thing, size)
    assert np.array_equal(
        cover[(inside == 0) | (inside == 1)] > 0.5, inside[(inside == 0) | (inside == 1)] > 0.5
    )
    # a straight edge across a pixel is off by at most 0.11, sharp tips by more
    assert np.abs(cover - inside).mean() < 0.003
    assert np.quantile(np.abs(cover - inside), 0.995) < 0.2


@pytest.mark.parametrize("shape", CONCEPTS["shape"])
def test_shapes_of_one_radius_have_one_area(shape: str) -> None:
    area = whole_cover(replace(THING, shape=shape, turn=0.3, x=0.5, y=0.5), 256).sum() / 256**2
    assert area == pytest.approx(math.pi * 0.25**2, rel=0.01)


@given(turn=st.floats(0, 1, exclude_max=True))
def test_cosine_and_sine(turn: float) -> None:
    cosine, sine = drawing._cosine_and_sine(turn)
    assert cosine == pytest.approx(math.cos(2 * math.pi * turn), abs=1e-12)
    assert sine == pytest.approx(math.sin(2 * math.pi * turn), abs=1e-12)


@pytest.mark.parametrize(
    ("texture", "dark"),
    [
        ("solid", 0.0),
        ("striped", 0.5),
        ("dotted", math.pi * 0.31**2),
        ("checkered", 0.5),
        ("shaded", 0.5),
    ],
)
def test_share_of_the_dark_tone(texture: str, dark: float) -> None:
    thing = replace(THING, texture=texture, fill_turn=0.2, x=0.5, y=0.5)
    window = (slice(64, 192), slice(64, 192))
    tone = np.broadcast_to(drawing._fill(thing, window, 256), (128, 128))
    assert tone.min() >= drawing.SHADE - 1e-6
    assert tone.max() <= 1
    share = (1 - tone.mean()) / (1 - drawing.SHADE)
    assert share == pytest.approx(dark, abs=0.05)


@pytest.mark.parametrize("kind", CONCEPTS["background"])
def test_backgrounds_keep_to_their_range(kind: str) -> None:
    backdrop = replace(GREY, kind=kind, contrast=20.0, turn=0.37)
    canvas = drawing._backdrop(backdrop, 96) - 120
    assert np.abs(canvas).max() <= 20 * 1.6
    assert abs(canvas.mean()) < 14
    assert canvas.std() > 2
    still = drawing._backdrop(replace(backdrop, contrast=0.0, slope=(8.0, -4.0)), 96) - 120
    assert still[0, 5, 95] - still[0, 5, 0] == pytest.approx(8, rel=0.02)
    assert still[1, 95, 5] - still[1, 0, 5] == pytest.approx(-4, rel=0.02)


def test_objects_have_a_dark_contour_inside_their_edge() -> None:
    thing = replace(THING, shape="circle", x=0.5, y=0.5, texture="striped")
    row = drawing.draw(Scene((thing,), (0,), GREY), 240)[120]
    edge = 240 // 2 - round(0.25 * 240)
    width = round(drawing.CONTOUR * 0.25 * 240)
    assert np.all(row[: edge - 1] == 120)
    assert np.all(row[edge + 1 : edge + width - 1] == drawing.INK)
    assert np.all(row[edge + width + 1 : 120, 0] > 2 * drawing.INK[0])


def test_the_front_hides_the_back() -> None:
    back = replace(THING, x=0.4)
    front = replace(THING, x=0.6, rgb=(40, 80, 200))
    ahead = Scene((back, front), (0, 1), GREY)
    behind = Scene((back, front), (1, 0), GREY)
    y, x = 35, 32
    assert drawing.draw(ahead, 64)[y, x].tolist() == [40, 80, 200]
    assert drawing.draw(behind, 64)[y, x].tolist() == [200, 40, 40]
    assert drawing.owners(ahead, 64)[y, x] == 2
    assert drawing.owners(behind, 64)[y, x] == 1
    assert drawing.owners(ahead, 64)[2, 2] == 0


@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_another_size_shows_the_same_scene(seed: int, index: int) -> None:
    scene = sample(fold(seed, 0), np.array([index])).scene(0)
    small = drawing.draw(scene, 64).astype(np.float64)
    large = drawing.draw(scene, 128).astype(np.float64)
    halved = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - halved).mean() < 2.5
    owner = drawing.owners(scene, 64)
    doubled = np.repeat(np.repeat(owner, 2, axis=0), 2, axis=1)
    assert (doubled == drawing.owners(scene, 128)).mean() > 0.96


def test_paint_is_draw() -> None:
    numbers = np.array([4, 0, 9])
    table = sample(fold(1, 0), numbers)
    pictures = drawing.paint(fold(1, 0), numbers, 40)
    assert pictures.shape == (3, 40, 40, 3)
    for row in range(3):
        assert np.array_equal(pictures[row], drawing.draw(table.scene(row), 40))


def test_drawings_have_not_changed() -> None:
    """A new digest needs a new `VERSION`: images of that name have changed for everyone."""
    pictures = drawing.paint(fold(0, 1), np.arange(60), 64)
    digest = hashlib.sha256(pictures.tobytes()).hexdigest()
    assert (drawing.VERSION, digest[:16]) == (1, "939ff933a0c24e39")


def test_drawing_needs_no_torch() -> None:
    code = "import sys, polysem.data.drawing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
