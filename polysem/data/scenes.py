"""What a drawn image shows, in words and lengths: `layout` makes scenes, `drawing` paints them.

A scene knows no resolution: lengths are fractions of the image side, so that one scene can be drawn
at any size. The names of all that can be seen are kept here too.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONCEPTS", "PALETTE", "Backdrop", "Scene", "Thing", "caption"]

#: Colour names and their sRGB values; each object has its own variant.
PALETTE = {
    "red": (216, 36, 40),
    "orange": (244, 134, 24),
    "yellow": (244, 218, 44),
    "green": (44, 160, 60),
    "cyan": (56, 204, 214),
    "blue": (40, 76, 214),
    "purple": (134, 52, 186),
    "pink": (250, 134, 194),
}

#: Every concept by the kind of thing it is. An image shows one background, and a shape, a colour,
#: a texture and a size for each of its objects.
CONCEPTS: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent"),
    "colour": tuple(PALETTE),
    "texture": ("solid", "striped", "dotted", "checkered", "shaded"),
    "size": ("small", "medium", "large"),
    "background": ("cloudy", "wavy", "grainy", "gridded", "bricked"),
}


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes
    ----------
    shape, colour, texture, size : str
        Names from `CONCEPTS`.
    x, y : float
        Centre, as a fraction of the image side from the left and from the top.
    radius : float
        Radius of the disc with the same area, as a fraction of the image side.
    turn, fill_turn : float
        Rotation of the outline, from upright, and of its fill, in full turns.
    fill_shift : tuple of float
        Where in its period the fill begins, along and across.
    rgb : tuple of int
        The object's own variant of its colour.
    """

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    turn: float
    fill_turn: float
    fill_shift: tuple[float, float]
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Backdrop:
    """What lies behind the objects.

    Attributes
    ----------
    kind : str
        A background name from `CONCEPTS`.
    rgb : tuple of int
        Muted base colour.
    contrast : float
        Half the range of the texture in 8-bit levels; its sign says which side is lighter.
    slope : tuple of float
        Change of brightness across the image, to the right and down, in 8-bit levels.
    period : float
        Size of the texture, from 0 (fine) to 1 (coarse).
    turn : float
        Rotation, in full turns.
    shift : tuple of float
        Where in its period the texture begins.
    noise : int
        Key for textures made of random numbers.
    """

    kind: str
    rgb: tuple[int, int, int]
    contrast: float
    slope: tuple[float, float]
    period: float
    turn: float
    shift: tuple[float, float]
    noise: int


@dataclass(frozen=True)
class Scene:
    """All there is to see: the objects, the largest first, and what lies behind them.

    `order` lists the objects in the order of painting, from the back to the front.
    """

    things: tuple[Thing, ...]
    order: tuple[int, ...]
    backdrop: Backdrop


def caption(scene: Scene) -> str:
    """Return the scene in plain English, the largest object first.

    Solid fills go unmentioned; sides are those of the viewer.
    """
    first, *others = scene.things
    sentence = _noun_phrase(first)
    for number, other in enumerate(others):
        sentence += f"{' and' if number else ''} {_side(first, other)} {_noun_phrase(other)}"
    kind = "brick" if scene.backdrop.kind == "bricked" else scene.backdrop.kind
    return f"{sentence} on a {kind} background"


def _noun_phrase(thing: Thing) -> str:
    texture = () if thing.texture == "solid" else (thing.texture,)
    return " ".join(("a", thing.size, thing.colour, *texture, thing.shape))


def _side(one: Thing, other: Thing) -> str:
    right, down = other.x - one.x, other.y - one.y
    if abs(right) >= abs(down):
        return "left of" if right > 0 else "right of"
    return "above" if down > 0 else "below"
