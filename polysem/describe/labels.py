"""Names for the units of a run, and for its heads: tables with evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polysem.describe.answers import Answers, read_answers, read_head_answers
from polysem.describe.naming import NAME_COLUMNS, Asked, Method, finish, method_of, name
from polysem.describe.pictures import Pictures
from polysem.describe.view import View
from polysem.errors import DataError, SpecError
from polysem.store.run import Run

__all__ = ["HEAD_LABELS", "LABELS", "Seen", "label_heads", "label_units", "require_fit"]

#: What is looked at of an exemplar: the crop of where it fired if that is known, crops or nothing,
#: or the whole image.
Seen = Literal["auto", "crops", "images"]

#: What the columns of ``tables/labels.parquet`` hold.
LABELS = {
    "site": "site name",
    "unit": "index of the unit at its site",
    "tail": "upper or lower: a unit that fires in both directions is named twice",
    **NAME_COLUMNS,
}

#: What the columns of ``tables/head_labels.parquet`` hold.
HEAD_LABELS = {
    "layer": "block of the head",
    "head": "index of the head in its block",
    "by": "norm: images in which its output is long; importance: images whose cost rises most "
    "without it",
    **NAME_COLUMNS,
}


def label_units(
    run: Run,
    pictures: Pictures,
    texts: Tensor,
    concepts: Sequence[str],
    *,
    sites: Sequence[str] | None = None,
    method: str = "soft-wpmi",
    seen: Seen = "auto",
    top: int = 5,
    rate: float = 0.05,
    n_draws: int = 1000,
    chunk: int = 256,
    seed: int = 0,
    on_site: Callable[[str, int, int], None] = lambda site, done, total: None,
) -> pd.DataFrame:
    """Name every unit of a run.

    Parameters
    ----------
    run : Run
    pictures : Pictures
        What the encoder saw of the run.
    texts : Tensor
        The same model's embedding of every concept [concept, dim].
    concepts : sequence of str
        Their names.
    sites : sequence of str, optional
        All sites of the run, if not given.
    method : str, default "soft-wpmi"
        One of `METHODS`.
    seen : {"auto", "crops", "images"}
        Names by what crops show hold for the place where a unit fires; they are tested on whole
        images all the same. ``auto`` takes crops where there are any, and the method takes
        exemplars.
    top : int, default 5
        Names per unit.
    rate : float, default 0.05
        False discovery rate at which a unit counts as named.
    n_draws : int, default 1000
        Draws of the null, for each face of each site.
    chunk : int
        Concepts at a time; changes memory and speed, not results.
    seed : int
        Of the null.
    on_site : callable
        Told the site, sites done and sites in all.

    Returns
    -------
    DataFrame
        Columns `LABELS`: `top` rows for each face of each unit; none for dead units.

    Raises
    ------
    SpecError
        If the method or a site is not known, or the method does not take crops asked for.
    DataError
        If embeddings do not belong to this run or these concepts.
    """
    by = method_of(method)
    require_fit(run, pictures, texts, concepts)
    if seen == "crops" and not by.of_exemplars:
        raise SpecError(
            f"{method} compares activations over whole images, not exemplars, so it cannot see "
            "crops; leave --seen out, or take soft-wpmi, wpmi or mean-embedding"
        )
    chosen = list(run.sites if sites is None else sites)
    tables = []
    for number, site in enumerate(chosen):
        on_site(site, number, len(chosen))
        for answers in read_answers(run, site, n_exemplars=by.n_exemplars):
            asked, what = _asked(answers, pictures, texts, by, seen)
            table = name(by, asked, top=top, n_draws=n_draws, chunk=chunk, seed=seed)
            tables.append(table.assign(site=site, tail=answers.tail, seen=what))
        on_site(site, number + 1, len(chosen))
    found = pd.concat(tables, ignore_index=True)
    return finish(found, concepts, rate, ["site", "tail", "unit"])[list(LABELS)]


def label_heads(
    run: Run,
    pictures: Pictures,
    texts: Tensor,
    concepts: Sequence[str],
    *,
    method: str = "soft-wpmi",
    top: int = 5,
    rate: float = 0.05,
    n_draws: int = 1000,
    chunk: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Name every attention head of a run by the images in which it writes, or is needed, most.

    Parameters as in `label_units`.

    Returns
    -------
    DataFrame
        Columns `HEAD_LABELS`. By importance too where ``polysem heads`` measured it.

    Raises
    ------
    SpecError, DataError
        As `label_units`.
    RunError
        If the run holds no heads.
    """
    by = method_of(method)
    require_fit(run, pictures, texts, concepts)
    tables = []
    for answers in read_head_answers(run, n_exemplars=by.n_exemplars):
        asked, what = _asked(answers, pictures, texts, by, "images")
        table = name(by, asked, top=top, n_draws=n_draws, chunk=chunk, seed=seed)
        of = run.heads if answers.site == "norm" else run.gates  # which may know other layers
        layer, head = np.divmod(table["unit"].to_numpy(), of.sizes["head"])
        tables.append(
            table.assign(layer=of["layer"].to_numpy()[layer], head=head, by=answers.site, seen=what)
        )
    found = pd.concat(tables, ignore_index=True)
    return finish(found, concepts, rate, ["layer", "head", "by"])[list(HEAD_LABELS)]


def require_fit(run: Run, pictures: Pictures, texts: Tensor, concepts: Sequence[str]) -> None:
    """Refuse embeddings that are not those of this run and these concepts.

    Raises
    ------
    DataError
        If there are more or fewer.
    """
    if len(pictures.images) != len(run.images) or len(texts) != len(concepts):
        raise DataError(
            f"{len(pictures.images)} image embeddings for {len(run.images)} images and "
            f"{len(texts)} text embeddings for {len(concepts)} concepts"
        )


def _asked(
    answers: Answers, pictures: Pictures, texts: Tensor, method: Method, seen: Seen
) -> tuple[Asked, str]:
    """Return what to name of a face, and whether by crops or by images."""
    tested = pictures.images[answers.tested_on]
    tested = torch.nn.functional.normalize(tested, dim=1)
    if method.of_exemplars and seen != "images" and answers.site in pictures.crops:
        view, rows = pictures.crops[answers.site].view(answers.tail, texts)
        if answers.ranked is not None:
            rows[(answers.ranked < 0).all(1)] = -1
        return Asked(view, rows, tested, answers.less_ranked), "crops"
    if method.of_exemplars:
        view, given = View(pictures.images, texts), answers.exemplars
    else:
        view, given = View(pictures.images[answers.found_on], texts), answers.activations
    return Asked(view, given, tested, answers.held_out), "images"
