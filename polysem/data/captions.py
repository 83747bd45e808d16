"""Phrases about drawn images, and which images they are true of: what a CLIP model learns from.

A phrase speaks of one object, by some of its attributes, or of the background, or of both. It is a
row of numbers: an index into `CONCEPTS` for each of `GROUPS`, or -1 where it says nothing.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
from torch import Tensor

from polysem.data.scenes import CONCEPTS

__all__ = ["GROUPS", "TEMPLATES", "phrases_about", "true_of", "vocabulary", "words"]

#: What a phrase may mention, in the order of its numbers; the background last.
GROUPS = ("shape", "colour", "texture", "size", "background")

#: Sentences that a phrase is put into.
TEMPLATES = (
    "{}",
    "a {}",
    "a photo of {}",
    "a photo of a {}",
    "a picture of {}",
    "a picture of a {}",
    "a close-up of {}",
    "an image that shows {}",
    "an image that shows a {}",
)

#: Other words for what is in `CONCEPTS`.
SYNONYMS = {
    "circle": ("disc",),
    "cross": ("plus sign",),
    "crescent": ("moon",),
    "solid": ("plain",),
    "dotted": ("spotted",),
    "checkered": ("checked",),
    "small": ("little",),
    "large": ("big",),
    "gridded": ("grid",),
    "bricked": ("brick",),
}

#: How often a phrase mentions each of shape, colour, texture, size and background: the attributes
#: by themselves, each with the shape, and more at once. They sum to 1.
_MENTIONS = (
    ("shape", 0.1),
    ("colour", 0.08),
    ("texture", 0.1),
    ("size", 0.06),
    ("background", 0.1),
    ("shape colour", 0.14),
    ("shape texture", 0.16),
    ("shape size", 0.1),
    ("colour texture", 0.03),
    ("shape colour texture", 0.04),
    ("shape colour size", 0.03),
    ("shape colour texture size", 0.02),
    ("shape background", 0.02),
    ("shape colour background", 0.02),
)
_SYNONYM_SHARE = 0.15
_THINGS = ("object", "shape", "thing")


def phrases_about(
    things: npt.NDArray[np.int64],
    background: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return a phrase about each image that is true of it, at least.

    Parameters
    ----------
    things : int array [image, thing, 4]
        Shape, colour, texture and size of each object, indices into `CONCEPTS`; -1 where an image
        has no such object.
    background : int array [image]
    rng : Generator

    Returns
    -------
    int array [image, 5]
        In the order of `GROUPS`. Of an image without objects it tells the background.
    """
    n_images = len(things)
    shown = things[..., 0] >= 0
    lots = np.where(shown, rng.random(shown.shape), -1)
    about = things[np.arange(n_images), lots.argmax(1)]
    kinds = rng.choice(len(_MENTIONS), n_images, p=[share for _, share in _MENTIONS])
    mentioned = np.array([
        [group in mentions.split() for group in GROUPS] for mentions, _ in _MENTIONS
    ])[kinds]  # fmt: skip
    mentioned[~shown.any(1)] = np.array(GROUPS) == "background"
    everything = np.concatenate([about, background[:, None]], axis=1)
    return np.where(mentioned, everything, -1)


def true_of(phrases: Tensor, things: Tensor, background: Tensor) -> Tensor:
    """Return which phrases are true of which images, bool [image, phrase].

    A phrase is true if one object has all the attributes that it mentions, and the background is
    the one that it mentions.

    Parameters
    ----------
    phrases : int Tensor [phrase, 5]
    things : int Tensor [image, thing, 4]
        -1 where an image has no such object.
    background : int Tensor [image]
        -1 where none is seen.
    """
    wanted, ground = phrases[:, :4], phrases[:, 4]
    fits = (things[:, :, None] == wanted) | (wanted < 0)
    shown = things[:, :, None, 0] >= 0
    said = (wanted >= 0).any(1)
    of_objects = (fits.all(3) & shown).any(1) | ~said
    on_ground = (background[:, None] == ground) | (ground < 0)
    return of_objects & on_ground


def words(phrase: npt.NDArray[np.int64], rng: np.random.Generator | None = None) -> str:
    """Return a phrase in English, such as "small red striped circle".

    Parameters
    ----------
    phrase : int array [5]
    rng : Generator, optional
        Draws synonyms, nouns and templates. Without it the words are those of `CONCEPTS`, as in
        the shapes vocabulary.

    >>> words(np.array([0, 0, -1, -1, -1])), words(np.array([-1, -1, -1, -1, 4]))
    ('red circle', 'bricked background')
    """
    named = {
        group: _name(CONCEPTS[group][index], rng)
        for group, index in zip(GROUPS, phrase.tolist(), strict=True)
        if index >= 0
    }
    ground = f"{named.pop('background')} background" if "background" in named else ""
    parts = [named[group] for group in ("size", "colour", "texture", "shape") if group in named]
    if parts and "shape" not in named and rng is not None and (rng.random() < 0.5 or ground):
        parts.append(_THINGS[rng.integers(len(_THINGS))])
    text = " ".join(parts)
    if ground:
        text = f"{text} on a {ground}" if text else ground
    return text if rng is None else TEMPLATES[rng.integers(len(TEMPLATES))].replace("{}", text)


def vocabulary() -> npt.NDArray[np.int64]:
    """Return the phrases of the shapes vocabulary, int array [concept, 5].

    Every attribute and background by itself, then every colour, texture and size with every shape.
    """
    alone = [("shape",), ("colour",), ("texture",), ("size",), ("background",)]
    pairs = [("colour", "shape"), ("texture", "shape"), ("size", "shape")]
    rows = []
    for groups in (*alone, *pairs):
        for choice in product(*(range(len(CONCEPTS[group])) for group in groups)):
            row = np.full(len(GROUPS), -1)
            row[[GROUPS.index(group) for group in groups]] = choice
            rows.append(row)
    return np.stack(rows)


def _name(name: str, rng: np.random.Generator | None) -> str:
    others = SYNONYMS.get(name, ())
    if rng is None or not others or rng.random() >= _SYNONYM_SHARE:
        return name
    return others[rng.integers(len(others))]
