"""Drawn images with full ground truth, as a data source: `layout` decides, `drawing` paints.

Nothing is read or stored: an image is a function of the seed, the split and its number. What it
shows is known exactly, so that a claim about a unit can be checked against the truth.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from multiprocessing import get_context
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from polysem.data import drawing, layout, scenes
from polysem.data.dataset import ImageData
from polysem.data.dice import fold
from polysem.errors import SpecError, did_you_mean

__all__ = ["Shapes", "shapes_from_spec"]

Split = Literal["train", "test"]
Label = Literal["shape", "colour", "texture"]

_DEFAULT_N = {"train": 10_000, "test": 2_000}
_LIMITS = {"n": (1, 9_999_999), "size": (16, 2048), "seed": (0, 2**63 - 1)}
_CHUNK = 512
_OBJECT_GROUPS = ("shape", "colour", "texture", "size")


class Shapes(ImageData):
    """One to three objects over a textured background, with everything about them known.

    The largest object, clearly larger than the others, gives the class. Images of one split and
    seed are the same at every `n` (a longer set goes on where a shorter one ends), show the same
    scenes at every `size`, and share none with the other split.

    Parameters
    ----------
    split : "train" or "test"
        Which of the two disjoint streams of scenes.
    n : int, optional
        Number of images; 10,000 for train and 2,000 for test where not given.
    size : int
        Width and height in pixels.
    seed : int
        Another seed gives other scenes.
    label : "shape", "colour" or "texture"
        What of the largest object the class tells.
    transform : callable, optional
        Applied to the PIL image by ``data[i]``.

    Attributes
    ----------
    concepts : tuple of str
        Names of everything that can be seen: shapes, colours, textures, sizes and backgrounds, in
        the order of ``scenes.CONCEPTS``.

    Raises
    ------
    SpecError
        If a value is unknown or out of range.

    >>> data = Shapes("test", n=4)
    >>> data.keys[1], data.classes[data.labels[1]]
    ('shapes/test/0000001', 'heart')
    >>> data.caption(1)
    'a medium green heart on a brick background'
    """

    concepts = tuple(
        f"{name} background" if group == "background" else name
        for group, names in scenes.CONCEPTS.items()
        for name in names
    )

    def __init__(
        self,
        split: Split = "train",
        *,
        n: int | None = None,
        size: int = 64,
        seed: int = 0,
        label: Label = "shape",
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        _check_choice("split", split, get_args(Split))
        _check_choice("label", label, get_args(Label))
        n = _DEFAULT_N[split] if n is None else n
        for option, value in (("n", n), ("size", size), ("seed", seed)):
            _check_range(option, value)
        self.split, self.size, self.seed, self.label = split, size, seed, label
        self._stream = fold(seed, get_args(Split).index(split))
        parts = [
            layout.sample_kinds(self._stream, np.arange(start, min(start + 2**16, n)))
            for start in range(0, n, 2**16)
        ]
        self._count = np.concatenate([count for count, _ in parts])
        self._kinds = {
            group: np.concatenate([kinds[group] for _, kinds in parts]) for group in scenes.CONCEPTS
        }
        self._tables: dict[int, layout.SceneTable] = {}
        self._in_order, self._last_chunk = True, -1
        super().__init__(
            _canonical(split, n=n, size=size, seed=seed, label=label),
            [f"shapes/{split}/{number:07d}" for number in range(n)],
            labels=self._kinds[label][:, 0],
            classes=scenes.CONCEPTS[label],
            transform=transform,
        )

    def __getstate__(self) -> dict[str, Any]:
        # a loader worker lays out again what it needs, which is quicker than receiving it
        return self.__dict__ | {"_tables": {}}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that the images and labels follow from."""
        source = {
            "source": "shapes",
            "drawing": drawing.VERSION,
            "split": self.split,
            "n": len(self),
            "size": self.size,
            "seed": self.seed,
            "label": self.label,
        }
        return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()

    def read(self, index: int) -> Image.Image:
        """Draw image number `index`."""
        return Image.fromarray(drawing.draw(self.scene(index), self.size))

    def scene(self, index: int) -> scenes.Scene:
        """Return what image number `index` shows, the largest object first."""
        chunk, row = divmod(self._within(index), _CHUNK)
        if chunk not in self._tables:
            self._in_order &= chunk > self._last_chunk
            self._last_chunk = chunk
            if self._in_order:  # those before will not be asked for again; shuffled, all will
                self._tables.clear()
            numbers = np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(self)))
            self._tables[chunk] = layout.sample(self._stream, numbers)
        return self._tables[chunk].scene(row)

    def caption(self, index: int) -> str:
        """Return what image number `index` shows, in plain English."""
        return scenes.caption(self.scene(index))

    def concept_matrix(self) -> npt.NDArray[np.bool_]:
        """Return which concepts each image shows, [image, concept], without drawing."""
        present = []
        shown = np.arange(layout.MOST_THINGS) < self._count[:, None]
        for group, names in scenes.CONCEPTS.items():
            kinds = self._kinds[group]
            if group == "background":
                present.append(kinds[:, None] == np.arange(len(names)))
            else:
                hits = kinds[:, :, None] == np.arange(len(names))
                present.append((hits & shown[:, :, None]).any(axis=1))
        return np.concatenate(present, axis=1)

    def objects(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return what each image shows as indices into ``scenes.CONCEPTS``, without drawing.

        Returns
        -------
        things : int64 array [image, thing, 4]
            Shape, colour, texture and size of each object; -1 for objects that are not there.
        background : int64 array [image]
        """
        things = np.stack([self._kinds[group] for group in _OBJECT_GROUPS], axis=2)
        shown = np.arange(layout.MOST_THINGS) < self._count[:, None]
        return np.where(shown[:, :, None], things, -1), self._kinds["background"]

    def owners(self, index: int) -> npt.NDArray[np.uint8]:
        """Return whose each pixel is, uint8 [y, x]: 0 the background's, 1 the first object's, …."""
        return drawing.owners(self.scene(index), self.size)

    def masks(self, index: int) -> npt.NDArray[np.bool_]:
        """Return where image number `index` shows each concept, [concept, y, x].

        Only what can be seen counts: a pixel belongs to the frontmost object that covers at least
        half of it, else to the background. Each pixel thus lies in the masks of one background, or
        of one shape, one colour, one texture and one size.
        """
        scene = self.scene(index)
        owner = self.owners(index)
        masks = np.zeros((len(self.concepts), self.size, self.size), dtype=np.bool_)
        masks[self.concepts.index(f"{scene.backdrop.kind} background")] = owner == 0
        for number, thing in enumerate(scene.things, start=1):
            visible = owner == number
            for group in _OBJECT_GROUPS:
                masks[self.concepts.index(getattr(thing, group))] |= visible
        return masks

    def array(
        self, indices: Sequence[int] | npt.NDArray[np.int64] | None = None, *, workers: int = 1
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Draw many images at once: the quick way to training data held in memory.

        Parameters
        ----------
        indices : int array [image], optional
            Which images; all where not given.
        workers : int
            Processes that draw. More than one starts new interpreters, which pays from some ten
            thousand images on and needs the usual ``if __name__ == "__main__":`` in scripts.

        Returns
        -------
        pictures : uint8 array [image, y, x, 3]
            RGB.
        labels : int64 array [image]
            As in `labels`.
        """
        if indices is None:
            numbers = np.arange(len(self))
        else:
            numbers = np.array([self._within(int(index)) for index in indices], dtype=np.int64)
        assert self.labels is not None
        pictures = np.empty((len(numbers), self.size, self.size, 3), dtype=np.uint8)
        starts = range(0, len(numbers), _CHUNK)
        chunks = [numbers[start : start + _CHUNK] for start in starts]
        paint = partial(drawing.paint, self._stream, size=self.size)
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for start, part in zip(starts, pool.map(paint, chunks), strict=True):
                    pictures[start : start + _CHUNK] = part
        else:
            for start, part in zip(starts, map(paint, chunks), strict=True):
                pictures[start : start + _CHUNK] = part
        return pictures, self.labels[numbers]

    def _within(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images; there is no image {index}")
        return index % len(self)


def shapes_from_spec(spec: str) -> Shapes:
    """Return the drawn images that a spec names.

    Parameters
    ----------
    spec : str
        ``shapes[:SPLIT][?OPTION=VALUE&…]`` with SPLIT ``train`` (where not given) or ``test`` and
        the options n, size, seed and label of `Shapes`.

    Raises
    ------
    SpecError
        If it does not read so, with near matches for a mistyped name.

    >>> shapes_from_spec("shapes:test?n=500&label=colour").classes[:3]
    ('red', 'orange', 'yellow')
    """
    source, mark, query = spec.partition("?")
    name, colon, split = source.partition(":")
    if name != "shapes":
        raise SpecError(f"{spec!r} starts with {name!r}, not with 'shapes'")
    if colon:
        _check_choice("split", split, get_args(Split))
    options = _options(spec, query) if mark else {}
    return Shapes(split or "train", **options)  # type: ignore[arg-type]


def _options(spec: str, query: str) -> dict[str, Any]:
    known = ("n", "size", "seed", "label")
    options: dict[str, Any] = {}
    for part in query.split("&"):
        option, equals, value = part.partition("=")
        if option not in known:
            raise SpecError(
                f"{spec!r}: unknown option {option!r}{did_you_mean(option, known)}; "
                f"the options are {', '.join(known)}"
            )
        if not equals or not value:
            raise SpecError(f"{spec!r}: option {option!r} has no value; write {option}=…")
        if option in options:
            raise SpecError(f"{spec!r}: option {option!r} is given twice")
        if option != "label" and not re.fullmatch("-?[0-9]{1,20}", value):
            raise SpecError(f"{spec!r}: option {option!r} needs a whole number, not {value!r}")
        options[option] = value if option == "label" else int(value)
    return options


def _canonical(split: str, **options: int | str) -> str:
    usual = {"n": _DEFAULT_N[split], "size": 64, "seed": 0, "label": "shape"}
    unusual = [f"{key}={value}" for key, value in options.items() if value != usual[key]]
    return f"shapes:{split}" + ("?" + "&".join(unusual) if unusual else "")


def _check_choice(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise SpecError(
            f"shapes have no {what} {given!r}{did_you_mean(given, known)}; "
            f"choose from {', '.join(known)}"
        )


def _check_range(option: str, value: int) -> None:
    low, high = _LIMITS[option]
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise SpecError(f"shapes need a whole number for {option!r}, not {value!r}")
    if not low <= value <= high:
        raise SpecError(f"shapes need {option!r} between {low} and {high}, not {value}")
