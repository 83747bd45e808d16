"""Names for units: the concepts that fit best, how sure that is, and how well they predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polysem.describe import similarity
from polysem.describe.answers import Answers, read_answers
from polysem.describe.evidence import (
    faithfulness,
    false_discovery_rates,
    null_scores,
    p_values,
)
from polysem.describe.similarity import Scorer, best_concepts
from polysem.describe.view import View
from polysem.errors import DataError, SpecError, did_you_mean
from polysem.store.run import Run

__all__ = ["LABELS", "METHODS", "label_units"]

_OF_EXEMPLARS = (similarity.soft_wpmi, similarity.wpmi, similarity.mean_embedding)
_OF_ACTIVATIONS = (
    similarity.auroc,
    similarity.cosine,
    similarity.cosine_cubed,
    similarity.rank_reorder,
)

#: Similarity functions by the name that the command line takes.
METHODS = MappingProxyType(
    {method.__name__.replace("_", "-"): method for method in (*_OF_EXEMPLARS, *_OF_ACTIVATIONS)}
)

#: Exemplars that CLIP-Dissect takes, by method.
_N_EXEMPLARS = {"wpmi": 28}

#: What the columns of the table hold.
LABELS = {
    "site": "site name",
    "unit": "index of the unit at its site",
    "tail": "upper or lower: a unit that fires in both directions is named twice",
    "rank": "1 for the best name",
    "concept": "name, from the vocabulary",
    "score": "how well it fits, by the method in the run's manifest of labels; higher is better",
    "p_value": "how often images drawn at random find a name at least as good, 0 to 1",
    "q_value": "false discovery rate at which the unit's best name is called (Benjamini-Hochberg "
    "over the units of all sites); NaN below rank 1",
    "named": "whether the best name is significant at the rate asked for; if not, none fits",
    "auroc": "held-out images: probability that one of the top 5 % is more like the name than "
    "another; 0.5 is chance",
    "rank_correlation": "held-out images: Spearman's correlation of likeness and activation",
    "n_exemplars": "images that the name was found on",
}


def label_units(
    run: Run,
    images: Tensor,
    texts: Tensor,
    concepts: Sequence[str],
    *,
    sites: Sequence[str] | None = None,
    method: str = "soft-wpmi",
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
    images : Tensor
        The encoder's embedding of every image of the run, in their order [image, dim].
    texts : Tensor
        The same model's embedding of every concept [concept, dim].
    concepts : sequence of str
        Their names.
    sites : sequence of str, optional
        All sites of the run, if not given.
    method : str, default "soft-wpmi"
        One of `METHODS`.
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
        If the method or a site is not known.
    DataError
        If embeddings do not belong to this run or these concepts.
    """
    if method not in METHODS:
        near = did_you_mean(method, METHODS)
        raise SpecError(f"there is no method {method!r}{near}; there are {', '.join(METHODS)}")
    if len(images) != len(run.images) or len(texts) != len(concepts):
        raise DataError(
            f"{len(images)} image embeddings for {len(run.images)} images and {len(texts)} text "
            f"embeddings for {len(concepts)} concepts"
        )
    chosen = list(run.sites if sites is None else sites)
    n_exemplars = _N_EXEMPLARS.get(method, 100)
    tables = []
    for number, site in enumerate(chosen):
        on_site(site, number, len(chosen))
        tables += [
            _label_face(
                answers,
                images,
                texts,
                METHODS[method],
                top=top,
                n_draws=n_draws,
                chunk=chunk,
                seed=seed,
            )
            for answers in read_answers(run, site, n_exemplars=n_exemplars)
        ]
        on_site(site, number + 1, len(chosen))
    table = pd.concat(tables, ignore_index=True)
    table["concept"] = np.asarray(concepts, dtype=object)[table["concept"]]
    first = table["rank"] == 1
    table["q_value"] = np.nan
    table.loc[first, "q_value"] = false_discovery_rates(table.loc[first, "p_value"])
    table["named"] = table["q_value"] <= rate
    table["named"] = table.groupby(["site", "tail", "unit"], sort=False)["named"].transform("max")
    return table[list(LABELS)]


def _label_face(
    answers: Answers,
    images: Tensor,
    texts: Tensor,
    function: Callable[..., Scorer],
    *,
    top: int,
    n_draws: int,
    chunk: int,
    seed: int,
) -> pd.DataFrame:
    if function in _OF_EXEMPLARS:
        view, given, image_axis = View(images, texts), answers.exemplars, None
    else:
        view, given, image_axis = View(images[answers.found_on], texts), answers.activations, 0
    method = partial(function, view=view)
    scores, best = best_concepts(method(given), view, min(top, view.n_concepts), chunk=chunk)
    null = null_scores(
        method, given, view, image_axis=image_axis, n_draws=n_draws, chunk=chunk, seed=seed
    )
    tested = faithfulness(answers.held_out, images[answers.tested_on], view.texts[best[:, 0]])
    n_units, n_ranks = best.shape
    counted = (given >= 0).sum(1) if image_axis is None else torch.full((n_units,), len(given))
    first = np.arange(n_ranks) == 0
    columns = {
        "site": answers.site,
        "unit": np.repeat(np.arange(n_units), n_ranks),
        "tail": answers.tail,
        "rank": np.tile(np.arange(1, n_ranks + 1), n_units),
        "concept": best.flatten().numpy(),
        "score": scores.double().flatten().numpy(),
        "p_value": p_values(scores.double(), null).ravel(),
        "auroc": np.where(first, tested.auroc[:, None], np.nan).ravel(),
        "rank_correlation": np.where(first, tested.rank_correlation[:, None], np.nan).ravel(),
        "n_exemplars": np.repeat(counted.numpy(), n_ranks),
    }
    table = pd.DataFrame(columns)
    return table[table["score"].notna()]
