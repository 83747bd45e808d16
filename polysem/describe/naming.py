"""The core of every naming: the concepts that fit best, how sure that is, how well they predict.

Units, facets and heads are named alike. What is given of them differs: exemplars as rows of a
view, or activations over its images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polysem.describe import pmi, similarity
from polysem.describe.evidence import faithfulness, false_discovery_rates, null_scores, p_values
from polysem.describe.scoring import Scorer, best_concepts
from polysem.describe.view import View
from polysem.errors import SpecError, did_you_mean

__all__ = ["METHODS", "NAME_COLUMNS", "Asked", "Method", "finish", "method_of", "name"]

#: Columns of every table of names, after those that say what is named.
NAME_COLUMNS = {
    "rank": "1 for the best name",
    "concept": "name, from the vocabulary",
    "score": "how well it fits, by the method; higher is better",
    "p_value": "how often images drawn at random find a name at least as good, 0 to 1",
    "q_value": "false discovery rate at which the best name is called (Benjamini-Hochberg over "
    "all that the table names); NaN below rank 1",
    "named": "whether the best name is significant at the rate asked for; if not, none fits",
    "auroc": "held-out images: probability that one of the top 5 % is more like the name than "
    "another; 0.5 is chance",
    "rank_correlation": "held-out images: Spearman's correlation of likeness and activation",
    "n_exemplars": "images that the name was found on",
    "seen": "what was embedded of an exemplar: a crop of where it fired, or the whole image",
    "method": "similarity function",
}


@dataclass(frozen=True)
class Method:
    """A similarity function, and what it is given.

    Attributes
    ----------
    name : str
        As the command line takes it.
    function : callable
        From exemplars or activations, and a view, to a scorer.
    of_exemplars : bool
        Whether it takes exemplars; else activations.
    n_exemplars : int
        Exemplars that it takes, where more are known.
    """

    name: str
    function: Callable[..., Scorer]
    of_exemplars: bool
    n_exemplars: int = 100


#: Similarity functions by the name that the command line takes. CLIP-Dissect takes 28 exemplars
#: for its wpmi, and 100 for its soft-wpmi.
METHODS = MappingProxyType({
    method.name: method
    for method in (
        Method("soft-wpmi", pmi.soft_wpmi, True),
        Method("wpmi", pmi.wpmi, True, 28),
        Method("mean-embedding", similarity.mean_embedding, True),
        Method("auroc", similarity.auroc, False),
        Method("cosine", similarity.cosine, False),
        Method("cosine-cubed", similarity.cosine_cubed, False),
        Method("rank-reorder", similarity.rank_reorder, False),
    )
})  # fmt: skip


def method_of(name: str) -> Method:
    """Return a similarity function by its name.

    Raises
    ------
    SpecError
        If there is none.
    """
    if name not in METHODS:
        near = did_you_mean(name, METHODS)
        raise SpecError(f"there is no method {name!r}{near}; there are {', '.join(METHODS)}")
    return METHODS[name]


@dataclass(frozen=True)
class Asked:
    """Units to be named, and what is known of them.

    Attributes
    ----------
    view : View
    given : Tensor
        Exemplars [unit, rank] as rows of the view's images with -1 for none, or activations
        [image, unit].
    likeness : Tensor
        Embeddings [image, dim] of the images that names are tested on.
    held_out : Tensor
        What fired on these [image, column]; NaN where an image is not held out.
    column : int64 Tensor [unit], optional
        Of `held_out`, where units share some.
    """

    view: View
    given: Tensor
    likeness: Tensor
    held_out: Tensor
    column: Tensor | None = None


def name(
    method: Method,
    asked: Asked,
    *,
    top: int,
    p_of: Callable[[npt.NDArray[np.float64], Tensor], npt.NDArray[np.float64]] | None = None,
    n_draws: int = 1000,
    chunk: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Name units by the concepts that fit best.

    Parameters
    ----------
    method : Method
    asked : Asked
    top : int
        Names per unit.
    p_of : callable, optional
        From scores [unit, rank] and what was given to p-values; by default those of `null_scores`.
    n_draws, seed
        Of the null.
    chunk : int
        Concepts at a time.

    Returns
    -------
    DataFrame
        Columns unit (counted from 0), rank, concept (its index), score, p_value, auroc,
        rank_correlation and n_exemplars; no row for units that tell nothing.
    """
    view, given = asked.view, asked.given
    scorer = partial(method.function, view=view)
    scores, best = best_concepts(scorer(given), view, min(top, view.n_concepts), chunk=chunk)
    found = scores.double().cpu().numpy()
    if p_of is None:
        axis = None if method.of_exemplars else 0
        null = null_scores(
            scorer, given, view, image_axis=axis, n_draws=n_draws, chunk=chunk, seed=seed
        )
        p = p_values(found, null)
    else:
        p = p_of(found, given)
    auroc, correlation = _tested(asked, view.texts[best[:, 0]])
    n_units, n_ranks = best.shape
    counted = (given >= 0).sum(1) if method.of_exemplars else torch.full((n_units,), len(given))
    first = np.arange(n_ranks) == 0
    table = pd.DataFrame(
        {
            "unit": np.repeat(np.arange(n_units), n_ranks),
            "rank": np.tile(np.arange(1, n_ranks + 1), n_units),
            "concept": best.flatten().cpu().numpy(),
            "score": found.ravel(),
            "p_value": p.ravel(),
            "auroc": np.where(first, auroc[:, None], np.nan).ravel(),
            "rank_correlation": np.where(first, correlation[:, None], np.nan).ravel(),
            "n_exemplars": np.repeat(counted.cpu().numpy(), n_ranks),
            "method": method.name,
        }
    )
    return table[table["score"].notna()]


def finish(
    table: pd.DataFrame, concepts: Sequence[str], rate: float, keys: Sequence[str]
) -> pd.DataFrame:
    """Return a table of names with words for concepts, rates of false discovery and verdicts.

    Parameters
    ----------
    table : DataFrame
        Rows of `name`, and columns that say what is named.
    concepts : sequence of str
    rate : float
        False discovery rate up to which a best name counts.
    keys : sequence of str
        Columns that say what is named.
    """
    table = table.reset_index(drop=True)
    table["concept"] = np.asarray(concepts, dtype=object)[table["concept"].astype(np.int64)]
    first = table["rank"] == 1
    table["q_value"] = np.nan
    table.loc[first, "q_value"] = false_discovery_rates(table.loc[first, "p_value"])
    table["named"] = table["q_value"] <= rate
    table["named"] = table.groupby(list(keys), sort=False)["named"].transform("max")
    return table


def _tested(asked: Asked, texts: Tensor) -> tuple[npt.NDArray[np.float64], ...]:
    """Return AUROC and rank correlation of each unit [unit], some units at a time."""
    parts = []
    for units in torch.arange(len(texts)).split(_TESTED_AT_ONCE):
        columns = units if asked.column is None else asked.column[units]
        part = faithfulness(asked.held_out[:, columns], asked.likeness, texts[units])
        parts.append((part.auroc, part.rank_correlation))
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


#: Units tested at once: ranks of all images are held in double precision for each.
_TESTED_AT_ONCE = 256
