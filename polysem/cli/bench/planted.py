"""The planted benchmark: units of known truth, every score of them, and how well each does.

It stands with the command because it needs what may not know of each other elsewhere: data,
network, probe and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from polysem.analysis.scaling import Floats
    from polysem.cli.bench.planted_worlds import Case

__all__ = ["MODERATE", "NOISES", "at_noise", "planted_benchmark"]

#: Standard deviations of the noise in standard deviations of a unit's signal.
NOISES = (0.0, 0.25, 0.5, 1.0, 2.0)
#: The level at which the headline score is chosen.
MODERATE = 0.5


@dataclass(frozen=True)
class Score:
    """One score as the benchmark knows it.

    Attributes
    ----------
    name : str
    needs : str
        What it looks at beside activations: nothing, embeddings, labels or concepts.
    source : str
        Whose score it is: polysem, or the peer's name.
    more : int
        1 if a higher value means more concepts, else -1.
    of : callable
        The score of the units of a case [unit].
    """

    name: str
    needs: str
    source: str
    more: int
    of: Callable[[Case], object]


def scores() -> tuple[Score, ...]:
    """Return every score that is compared."""
    from polysem.analysis import excitation, peer_scores, selectivity
    from polysem.analysis.concepts import concept_aurocs, count_concepts
    from polysem.analysis.excess_rank import excess_rank
    from polysem.analysis.facets import find_facets
    from polysem.analysis.monosemanticity import monosemanticity_score, unit_length
    from polysem.cli.bench.planted_worlds import circuit_distance

    def exemplars(case: Case, k: int = 16) -> Floats:
        return peer_scores.top_exemplars(case.activations, case.embeddings, k)

    ms, pure, lens = "MS (2504.02821)", "PURE (2404.06453)", "semanticlens (2501.05398)"
    return (
        Score("excess_rank", "embeddings", "polysem", 1,
              lambda c: excess_rank(c.activations, c.embeddings)),
        Score("facets", "embeddings", "polysem", 1,
              lambda c: find_facets(unit_length(exemplars(c, 32)), n_resamples=0).count),
        Score("monosemanticity", "embeddings", ms, -1,
              lambda c: monosemanticity_score(c.activations, c.embeddings)),
        Score("monosemanticity_centred", "embeddings", "polysem", -1,
              lambda c: monosemanticity_score(c.activations, c.embeddings - c.embeddings.mean(0))),
        Score("clarity", "embeddings", lens, -1,
              lambda c: peer_scores.clarity_score(exemplars(c))),
        Score("two_centre_polysemanticity", "embeddings", lens, 1,
              lambda c: peer_scores.two_centre_polysemanticity(exemplars(c))),
        Score("circuit_distance", "embeddings", pure, 1, circuit_distance),
        Score("hoyer_sparsity", "nothing", "polysem", -1,
              lambda c: excitation.hoyer_sparsity(c.activations)),
        Score("excess_kurtosis", "nothing", "polysem", -1,
              lambda c: excitation.excess_kurtosis(c.activations)),
        Score("selectivity_index", "labels", "Morcos (1803.06959)", -1,
              lambda c: selectivity.selectivity_index(
                  selectivity.class_means(c.activations, c.labels))),
        Score("effective_classes", "labels", "polysem", 1,
              lambda c: selectivity.effective_classes(
                  selectivity.class_means(c.activations, c.labels))),
        Score("best_class_auroc", "labels", "INVERT", -1,
              lambda c: selectivity.class_aurocs(c.activations, c.labels).max(0)),
        Score("best_concept_auroc", "concepts", "INVERT", -1,
              lambda c: concept_aurocs(c.activations, c.presence).max(0)),
        Score("concept_count", "concepts", "polysem", 1,
              lambda c: count_concepts(c.activations, c.presence)[0]),
    )  # fmt: skip


def planted_benchmark(
    model: str,
    *,
    n_images: int = 4000,
    per_count: int = 60,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Hold every score against planted units.

    Parameters
    ----------
    model : str
        Network that units are spliced into, and whose pooled features embed the images.
    n_images : int
        Drawn images, in which some concepts keep company.
    per_count : int
        Units for each number of concepts from one to six. Of every two of them one serves to
        choose the headline score, the other is reported.
    seed : int
        Of images and units.
    report : callable
        Told about each case that is done.

    Returns
    -------
    table : DataFrame
        Columns level, needs, source, score, noise, auroc, spearman (of the half reported),
        auroc_chosen, spearman_chosen (of the half that the headline is chosen on), missing (units
        without a value, which count as average), headline.
    splice : DataFrame
        Columns noise, unit, n_concepts, correlation, realised: how well each spliced unit
        follows the signal that was planted, and whether that is well enough.

    Raises
    ------
    PolysemError
        If the network is no standard vision transformer, or too few images are asked for.
    """
    import pandas as pd

    from polysem.cli.bench.planted_worlds import cases, least_correlation

    rows, spliced = [], []
    for case in cases(model, n_images=n_images, per_count=per_count, noises=NOISES, seed=seed):
        rows += list(_rows(case))
        if case.correlation is not None:
            kept = {"unit": range(len(case.truth)), "n_concepts": case.truth}
            found = pd.DataFrame({"noise": case.noise, **kept, "correlation": case.correlation})
            enough = found["correlation"] >= least_correlation(case.noise)
            spliced.append(found.assign(realised=enough))
        report(f"{case.level}, noise {case.noise}: done")
    table = pd.DataFrame(rows)
    table["headline"] = table["score"] == _choose(table)
    return table, pd.concat(spliced, ignore_index=True)


def at_noise(table: pd.DataFrame, noise: float, measure: str) -> pd.DataFrame:
    """Return one measure of all scores by level, at one level of noise."""
    some = table[table["noise"] == noise]
    wide = some.pivot(index="score", columns="level", values=measure)[some["level"].unique()]
    about = some.drop_duplicates("score").set_index("score")[["needs", "headline"]]
    return about.join(wide).reset_index()


def _rows(case: Case) -> Iterator[dict[str, object]]:
    import numpy as np
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    chosen = np.arange(len(case.truth)) % 2 == 0
    for score in scores():
        values = score.more * np.asarray(score.of(case), dtype=np.float64)
        missing = np.isnan(values)
        filled = np.where(missing, np.median(values[~missing]) if (~missing).any() else 0, values)
        row = {
            "level": case.level, "needs": score.needs, "source": score.source,
            "score": score.name, "noise": case.noise,
        }  # fmt: skip
        for ending, half in (("", ~chosen), ("_chosen", chosen)):
            truth, given = case.truth[half], filled[half]
            row[f"auroc{ending}"] = float(roc_auc_score(truth > 1, given))
            varied = np.ptp(given) > 0
            row[f"spearman{ending}"] = float(spearmanr(given, truth)[0]) if varied else 0.0
        yield {**row, "missing": int(missing.sum())}


def _choose(table: pd.DataFrame) -> str:
    """Return the score without labels or concepts that does best at moderate noise."""
    free = table[table["needs"].isin(["nothing", "embeddings"]) & (table["noise"] == MODERATE)]
    mean = (free["auroc_chosen"] + free["spearman_chosen"]).groupby(free["score"]).mean()
    return str(mean.idxmax())
