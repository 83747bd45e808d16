"""What pages are made of: the run that they show, what they say, and what is missing from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup

from polysem.report.site.sprites import Sprites
from polysem.store.run import Run

__all__ = [
    "Content", "Missing", "PageKind", "Shown", "embedded", "rounded", "write_data",
]  # fmt: skip

#: Significant digits of numbers in the data files: more than anybody reads off a screen.
_DIGITS = 4

#: Characters that could end a script element, or a line of JavaScript.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Missing:
    """Something that a run does not hold yet.

    Attributes
    ----------
    what : str
        What is left out of the page: a noun that begins a sentence.
    command : str
        The command that would add it.
    """

    what: str
    command: str


@dataclass(frozen=True)
class Shown:
    """One run as the site shows it.

    Attributes
    ----------
    run : Run
    key : str
        Its name in paths and links of the site: letters, digits, ``-`` and ``_``.
    name : str
        Its name on pages, as given by the user's folder: to be escaped.
    folder : Path
        The site being written.
    sprites : Sprites
        Where its images are.
    n_exemplars : int
        Exemplars of each tail of a unit.
    on_step : callable
        Told what is being done, how far it is, and how far it goes.
    """

    run: Run
    key: str
    name: str
    folder: Path
    sprites: Sprites
    n_exemplars: int = 9
    on_step: Callable[[str, int, int], None] = lambda _what, _done, _total: None


@dataclass(frozen=True)
class Content:
    """What one page says.

    Attributes
    ----------
    context : mapping
        Names that its template uses.
    data : sequence of str
        Data files that are loaded with the page, as `write_data` returned them.
    missing : sequence of Missing
        What the run does not hold.
    charts : bool
        Whether the page draws with plotly, whose script is large.
    empty : bool
        Whether there is nothing but what is missing.
    """

    context: Mapping[str, Any] = field(default_factory=dict)
    data: Sequence[str] = ()
    missing: Sequence[Missing] = ()
    charts: bool = False
    empty: bool = False


@dataclass(frozen=True)
class PageKind:
    """A kind of page, written once for each run or once for all.

    Attributes
    ----------
    slug : str
        Of its files, ``SLUG.html``, and of its template, ``SLUG.html`` too.
    title : str
        In the navigation and as heading.
    build : callable
        From a `Shown` (kinds of `each` run), or else from an `extras.Whole`, to `Content`.
    each : bool
        Whether every run has its own.
    scripts : sequence of str
        Of ``static/``, beyond those that every page loads.
    """

    slug: str
    title: str
    build: Callable[[Any], Content]
    each: bool = True
    scripts: Sequence[str] = ()


def write_data(shown: Shown, name: str, payload: Any) -> str:
    """Write ``data/KEY/NAME.js``, which hands a payload to the page, and return its path.

    Pages opened as files may not fetch other files, but may load scripts: data are scripts that
    call ``polysem.give(KEY/NAME, payload)``. NaN becomes null.
    """
    place = Path("data") / shown.key / f"{name}.js"
    file = shown.folder / place
    file.parent.mkdir(parents=True, exist_ok=True)
    said = f"polysem.give({_script(f'{shown.key}/{name}')},{_script(payload)});\n"
    file.write_text(said, encoding="utf-8")
    return place.as_posix()


def embedded(payload: Any) -> Markup:
    r"""Return JSON that can stand inside a script element, whatever names it holds.

    >>> embedded({"class": "</script>"})
    Markup('{"class":"\\u003c/script\\u003e"}')
    """
    return Markup(_script(payload))


def _script(payload: Any) -> str:
    text = json.dumps(
        payload, ensure_ascii=False, separators=(",", ":"), default=_plain, allow_nan=False
    )
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return rounded(value)
    if isinstance(value, pd.Series):
        return rounded(value.to_numpy())
    raise TypeError(f"{type(value)} cannot be written as JSON")


def rounded(values: npt.ArrayLike, digits: int = _DIGITS) -> list[Any]:
    """Return numbers as a list, with so many significant digits; NaN and infinity become None.

    >>> rounded([0.123456, 12345.6, float("nan"), 0.0])
    [0.1235, 12350, None, 0]
    """
    given = np.asarray(values)
    if given.dtype.kind in "biu":
        whole: list[Any] = given.astype(int).tolist()
        return whole
    numbers = given.astype(np.float64)
    fine = np.isfinite(numbers)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = digits - 1 - np.floor(np.log10(np.abs(np.where(fine, numbers, 1.0))))
    scale = 10.0 ** np.where(np.isfinite(place), np.clip(place, -300, 300), 0)
    short = np.where(fine, np.round(np.where(fine, numbers, 0.0) * scale) / scale, 0.0)
    found: list[Any] = _listed(short.tolist(), fine.tolist())
    return found


def _listed(values: Any, fine: Any) -> Any:
    if isinstance(values, list):
        return [_listed(value, ok) for value, ok in zip(values, fine, strict=True)]
    if not fine:
        return None
    return int(values) if values == int(values) else float(f"{values:.12g}")
