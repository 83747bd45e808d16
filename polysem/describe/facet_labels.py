"""Names for facets: a unit that answers to several things gets a name for each.

Facets are groups of exemplars that look alike, so some concept fits any of them better than it
fits exemplars drawn at random. Chance is therefore asked the same question: exemplars drawn at
random are divided into facets in the same way, and their facets named. That is the same question
where `divide` made the facets; where another encoder did, chance is divided by the one that names,
which makes chance look no worse than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polysem.analysis.facets import find_facets
from polysem.describe.answers import Answers, read_answers
from polysem.describe.divide import whitening
from polysem.describe.evidence import p_values
from polysem.describe.labels import Seen, require_fit
from polysem.describe.naming import NAME_COLUMNS, Asked, Method, finish, method_of, name
from polysem.describe.pictures import Pictures
from polysem.describe.scoring import best_concepts
from polysem.describe.view import View
from polysem.errors import RunError, SpecError
from polysem.store.run import Run

__all__ = ["FACET_LABELS", "label_facets"]

#: What the columns of ``tables/facet_labels.parquet`` hold.
FACET_LABELS = {
    "site": "site name",
    "unit": "index of the unit at its site",
    "tail": "upper or lower: a unit that fires both ways has two faces",
    "facet": "0 for the one with most exemplars, as in the table facets",
    "share": "its share of the exemplars' activation above the unit's mean over images, 0 to 1",
    **NAME_COLUMNS,
}

_KEYS = ["site", "unit", "tail", "facet"]

#: Random sets of exemplars from which the scores of each size of facet are scaled.
_SCALING_DRAWS = 200


def label_facets(
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
    """Name every facet of a run's units, as ``polysem facets`` divided them.

    Each facet is named by its own exemplars. Names are tested on other images by how well they
    predict the whole unit, of which a facet is a part.

    Parameters
    ----------
    run : Run
        With the table facets.
    n_draws : int
        Random sets of exemplars that are divided and named.
    pictures, texts, concepts, sites, method, seen, top, rate, chunk, seed, on_site
        As in `label_units`; the method has to take exemplars.

    Returns
    -------
    DataFrame
        Columns `FACET_LABELS`.

    Raises
    ------
    SpecError
        If the method is not known or takes activations.
    RunError
        If the run has no facets of these sites.
    DataError
        If embeddings do not belong to this run or these concepts.
    """
    by = method_of(method)
    if not by.of_exemplars:
        raise SpecError(
            f"{method} compares activations over all images, and a facet is a group of exemplars: "
            "take soft-wpmi, wpmi or mean-embedding"
        )
    require_fit(run, pictures, texts, concepts)
    facets = run.table("facets")
    chosen = list(run.sites if sites is None else sites)
    lacking = [site for site in chosen if not (facets["site"] == site).any()]
    if lacking:
        raise RunError(
            f"{run.path} has no facets at {', '.join(lacking)}; make them with: polysem facets "
            f"{run.path}"
        )
    most = max(5, int(facets["facet"].max()) + 1)
    chance: dict[str, _Chance] = {}
    tables = []
    for number, site in enumerate(chosen):
        on_site(site, number, len(chosen))
        for part in _parts(run, site, facets, pictures, texts, seen):
            if not len(part.rows):
                continue
            # crops at different grids are different; whole images are the same everywhere
            key = site if part.seen == "crops" else "images"
            if key not in chance:
                chance[key] = _Chance.drawn(
                    by, part.asked.view, part.counts, n_ranks=part.asked.given.shape[1],
                    most=most, n_draws=n_draws, chunk=chunk, seed=seed,
                )  # fmt: skip
            table = name(by, part.asked, top=top, p_of=chance[key].p, chunk=chunk)
            facet = part.rows.iloc[table["unit"].to_numpy()]
            keys = {key: facet[key].to_numpy() for key in [*_KEYS, "share"]}
            tables.append(table.assign(**keys, seen=part.seen))
        on_site(site, number + 1, len(chosen))
    found = pd.concat(tables, ignore_index=True)
    return finish(found, concepts, rate, _KEYS)[list(FACET_LABELS)]


@dataclass(frozen=True)
class _Part:
    """The facets of one face: rows of the table, what to ask, exemplars by unit."""

    rows: pd.DataFrame
    asked: Asked
    counts: npt.NDArray[np.int64]
    seen: str


def _parts(
    run: Run, site: str, facets: pd.DataFrame, pictures: Pictures, texts: Tensor, seen: Seen
) -> Iterator[_Part]:
    """Yield the facets of each face of a site, with their exemplars."""
    whole = View(pictures.images, texts)
    for answers in read_answers(run, site):
        rows = facets[(facets["site"] == site) & (facets["tail"] == answers.tail)]
        if answers.ranked is None:
            raise RunError(f"{run.path} has no exemplars of {site}; probe again")
        if seen != "images" and site in pictures.crops:
            view, ranked = pictures.crops[site].view(answers.tail, texts)
            what = "crops"
        else:
            view, ranked, what = whole, answers.ranked, "images"
        yield _Part(rows, _asked(answers, rows, view, ranked, whole), _counts(rows), what)


def _asked(answers: Answers, rows: pd.DataFrame, view: View, ranked: Tensor, whole: View) -> Asked:
    units = torch.tensor(rows["unit"].to_numpy(dtype=np.int64))
    inside = torch.zeros(len(rows), ranked.shape[1], dtype=torch.bool)
    for place, ranks in enumerate(rows["ranks"]):
        inside[place, torch.tensor(ranks, dtype=torch.int64)] = True
    given = _packed(ranked[units].masked_fill(~inside, -1))
    return Asked(view, given, whole.images[answers.tested_on], answers.less_ranked, units)


def _counts(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return how many exemplars each unit has, over its facets."""
    return rows.groupby("unit")["exemplars"].sum().to_numpy(dtype=np.int64)


def _packed(exemplars: Tensor) -> Tensor:
    """Return exemplars with those that are there first, in their order."""
    order = (exemplars < 0).to(torch.int8).argsort(dim=1, stable=True)
    return exemplars.gather(1, order)


@dataclass(frozen=True)
class _Chance:
    """What the facets of random exemplars score, on a scale of their own for each size.

    Attributes
    ----------
    mean, spread : float arrays [size]
        Of the best scores of so many random exemplars, undivided; from size 0.
    null : float array [facet]
        Best scores of the facets of random exemplars, on that scale.
    """

    mean: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    null: npt.NDArray[np.float64]

    @classmethod
    def drawn(
        cls,
        method: Method,
        view: View,
        counts: npt.NDArray[np.int64],
        *,
        n_ranks: int,
        most: int,
        n_draws: int,
        chunk: int,
        seed: int,
    ) -> _Chance:
        """Draw random exemplars, divide them by their embeddings, and score the facets.

        Parameters
        ----------
        counts : int array [unit]
            How many exemplars units have; each draw has as many as one of these.
        n_ranks : int
            The most exemplars that any unit can have, at this site or another.
        most : int
            Facets looked for at most.
        """
        scorer = partial(method.function, view=view)
        generator = torch.Generator().manual_seed(seed)
        n_ranks = min(n_ranks, view.n_chance)

        def draw(n: int) -> Tensor:
            rows = [torch.randperm(view.n_chance, generator=generator)[:n_ranks] for _ in range(n)]
            return torch.stack(rows)

        def best(given: Tensor) -> npt.NDArray[np.float64]:
            return best_concepts(scorer(given), view, 1, chunk=chunk)[0][:, 0].double().numpy()

        sets = draw(_SCALING_DRAWS)
        by_size = [best(_first(sets, n)) for n in range(1, n_ranks + 1)]
        mean = np.array([0.0, *(scores.mean() for scores in by_size)])
        spread = np.array([1.0, *(scores.std() for scores in by_size)]).clip(min=1e-9)
        pick = torch.randint(len(counts), (n_draws,), generator=generator)
        exemplars = draw(n_draws)
        exemplars[torch.arange(n_ranks) >= torch.tensor(counts)[pick][:, None]] = -1
        # chance is divided as `divide` divides
        seen = (view.images @ whitening(view.images[: view.n_chance])).float()
        vectors = seen[exemplars.clamp(min=0)]
        vectors = vectors.masked_fill((exemplars < 0)[..., None], torch.nan)
        groups = find_facets(vectors.numpy(), most=most, n_resamples=0, seed=seed).group
        given = torch.cat([
            exemplars[held].masked_fill(torch.from_numpy(groups[held] != facet), -1)
            for facet in range(most)
            if (held := (groups == facet).any(1)).any()
        ])  # fmt: skip
        given = _packed(given)
        chance = cls(mean, spread, np.zeros(0))
        return cls(mean, spread, chance._scaled(best(given), given))

    def p(self, scores: npt.NDArray[np.float64], given: Tensor) -> npt.NDArray[np.float64]:
        """Return p-values of scores [facet, rank] of facets with these exemplars."""
        return p_values(self._scaled(scores, given), self.null)

    def _scaled(self, scores: npt.NDArray[np.float64], given: Tensor) -> npt.NDArray[np.float64]:
        size = (given >= 0).sum(1).numpy()
        scale = (size,) if scores.ndim == 1 else (size[:, None],)
        return np.asarray((scores - self.mean[scale]) / self.spread[scale])


def _first(sets: Tensor, n: int) -> Tensor:
    """Return sets of which only the first n exemplars are there."""
    return torch.where(torch.arange(sets.shape[1]) < n, sets, -1)
