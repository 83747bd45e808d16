"""Tables over time of one site: what its units were at each snapshot, and when they were born."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from polysem.analysis.births import births, label_changes, same_as_last
from polysem.analysis.polysemanticity import MEANINGS
from polysem.analysis.site_over_time import SiteOverTime

__all__ = [
    "BIRTHS", "LAYERS", "SCORES", "TRAJECTORIES", "Follow", "birth_table", "layer_table",
    "trajectory_table",
]  # fmt: skip

#: Which unit of an earlier snapshot a unit of the final network is followed to: the one of the
#: same index, or the one that does the most alike.
Follow: TypeAlias = Literal["index", "match"]

#: Scores that are followed, as in ``tables/polysemanticity.parquet``.
SCORES = (
    "excess_rank", "ms", "ms_above_chance", "clarity", "selectivity", "effective_classes",
    "best_class_auroc", "kurtosis", "hoyer",
)  # fmt: skip

_FACE = {
    "site": "where in the network",
    "unit": "index of the unit at its site, in the final network",
    "tail": "upper or lower face of the unit",
}

#: Columns of ``trajectories``.
TRAJECTORIES = {
    **_FACE,
    "step": "training step of the snapshot",
    "followed_unit": "unit of the snapshot that dead, label and scores are of: the one of the same "
    "index, or the match; missing where there is no match",
    "dead": "that unit gives the same value on all images, or there is none",
    "correlation": "of the unit of the same index with the final one, pooled activations over "
    "images, -1 to 1; missing where one is constant",
    "matched_unit": "unit of the snapshot that the final unit is matched to: one to one within the "
    "site, largest sum of correlations (mean over faces); missing where one is constant",
    "matched_correlation": "correlation of that match with the final unit",
    "previous_correlation": "of the unit of the same index with itself in the preceding snapshot",
    "label": "what the followed unit is called; missing where nothing fits",
    **{name: MEANINGS[name] for name in SCORES},
}

#: Columns of ``births``.
BIRTHS = {
    **_FACE,
    "final_label": "what the unit is called in the final network; missing where nothing fits",
    "birth_label": "step of the first snapshot from which on the final label holds; missing "
    "without one",
    "birth_correlation": "step of the first snapshot from which on the followed unit's correlation "
    "with the final one is at least the threshold; missing where it never is",
    "label_changes": "snapshots whose label differs from the preceding one's; no label is a label",
    "label_churn": "the same as a share of all snapshots but the first, 0 to 1",
}

#: Columns of ``layers``.
LAYERS = {
    "site": "where in the network",
    "step": "training step of the snapshot",
    "units": "units of the site",
    "living": "those that are not constant, here and in the final network",
    "cka_final": "linear CKA of the site with the final network, by pooled activations, 0 to 1 "
    "(Kornblith et al. 1905.00414)",
    "cka_previous": "linear CKA with the preceding snapshot",
    "correlation": "median over living faces, as in trajectories",
    "matched_correlation": "median over living faces, as in trajectories",
    "kept_index": "share of living units that are matched to their own index in the final network",
    "index_churn": "share of living units whose match in the preceding snapshot has another index",
    "label_churn": "share of living faces whose label differs from the preceding snapshot's; no "
    "label is a label",
    "named": "share of living faces with a label",
    "born_label": "share of the faces with a final label that have it for good by now",
    "born_correlation": "share of living faces whose correlation with the final network has "
    "reached the threshold for good by now",
    "accuracy": "share of images that the network gets right at this step; the same for all sites",
    **{name: f"median over living faces: {MEANINGS[name]}" for name in SCORES},
}


def trajectory_table(
    site: str,
    found: SiteOverTime,
    scores: Mapping[int, pd.DataFrame],
    labels: Mapping[int, pd.Series],
    *,
    follow: Follow,
) -> pd.DataFrame:
    """Return a row for each tail, unit and step of a site; columns `TRAJECTORIES`.

    Parameters
    ----------
    site : str
    found : SiteOverTime
    scores : mapping of int to DataFrame
        By step, the polysemanticity table of the snapshot.
    labels : mapping of int to Series
        By step, labels by (site, unit, tail); empty where units are called nothing.
    follow : {"index", "match"}
    """
    n_units = found.match.shape[1]
    followed = found.match if follow == "match" else np.tile(np.arange(n_units), (len(scores), 1))
    dead = np.take_along_axis(found.dead, followed, axis=1) | (followed < 0)
    parts = []
    for t, tail in enumerate(found.tails):
        for s, (step, table) in enumerate(scores.items()):
            key = pd.MultiIndex.from_arrays(
                [np.full(n_units, site), followed[s], np.full(n_units, tail)],
                names=["site", "unit", "tail"],
            )
            mine = table[(table["site"] == site) & (table["tail"] == tail)]
            part = pd.DataFrame(
                {
                    "site": site, "unit": np.arange(n_units), "tail": tail, "step": step,
                    "followed_unit": _or_missing(followed[s]), "dead": dead[s],
                    "correlation": found.correlation[s, t],
                    "matched_unit": _or_missing(found.match[s]),
                    "matched_correlation": found.matched_correlation[s, t],
                    "previous_correlation": found.previous_correlation[s, t],
                }
            )  # fmt: skip
            called = labels[step].reindex(key) if labels else pd.Series(None, index=key)
            part["label"] = called.astype(object).where(called.notna(), None).to_numpy()
            part[list(SCORES)] = (
                mine.set_index("unit")[list(SCORES)].reindex(followed[s]).to_numpy(dtype=float)
            )
            parts.append(part)
    order = ["tail", "unit", "step"]
    table = pd.concat(parts, ignore_index=True)
    tails = pd.Categorical(table["tail"], categories=list(found.tails), ordered=True)
    ranked = table.assign(tail=tails).sort_values(order, kind="stable").index
    return table.loc[ranked, list(TRAJECTORIES)].reset_index(drop=True)


def birth_table(trajectories: pd.DataFrame, *, threshold: float, follow: Follow) -> pd.DataFrame:
    """Return a row for each face of a site: when it was born; columns `BIRTHS`.

    Parameters
    ----------
    trajectories : DataFrame
        As `trajectory_table` gives it.
    threshold : float
        Correlation from which on a unit counts as its final self.
    follow : {"index", "match"}
    """
    steps = trajectories["step"].unique()
    labels = _by_step(trajectories, "label", len(steps))
    likeness = "matched_correlation" if follow == "match" else "correlation"
    with np.errstate(invalid="ignore"):
        alike = _by_step(trajectories, likeness, len(steps)).astype(float) >= threshold
    changes = label_changes(labels)
    table = trajectories[["site", "unit", "tail"]].iloc[:: len(steps)].reset_index(drop=True)
    table["final_label"] = labels[:, -1]
    for name, holds in {"label": same_as_last(labels), "correlation": alike}.items():
        first = births(holds)
        table[f"birth_{name}"] = _or_missing(np.where(first >= 0, steps[first], -1))
    table["label_changes"] = changes.sum(1)
    table["label_churn"] = changes.mean(1)
    return table[list(BIRTHS)]


def layer_table(
    found: SiteOverTime,
    trajectories: pd.DataFrame,
    born: pd.DataFrame,
    accuracy: npt.ArrayLike,
) -> pd.DataFrame:
    """Return a row for each step of a site; columns `LAYERS`.

    Parameters
    ----------
    found : SiteOverTime
    trajectories, born : DataFrame
        As `trajectory_table` and `birth_table` give them.
    accuracy : float array [step]
        Of the network; NaN where it is not known.
    """
    steps = trajectories["step"].unique()
    living = ~found.dead & ~found.dead[-1]  # [step, unit]
    own = np.arange(living.shape[1])
    labels = _by_step(trajectories, "label", len(steps))
    changed = label_changes(labels)
    faces = np.tile(living, (1, len(found.tails))).T  # [face, step]
    has_final = born["final_label"].notna().to_numpy()
    rows = []
    for s, step in enumerate(steps):
        here = trajectories[(trajectories["step"] == step).to_numpy()]
        alive = here[faces[:, s]]
        row = {
            "site": here["site"].iloc[0], "step": step, "units": len(own),
            "living": int(living[s].sum()),
            "cka_final": found.cka_final[s], "cka_previous": found.cka_previous[s],
            "correlation": alive["correlation"].median(),
            "matched_correlation": alive["matched_correlation"].median(),
            "kept_index": _share(found.match[s] == own, living[s]),
            "index_churn": _share(found.previous_match[s] != own, living[s]) if s else np.nan,
            "label_churn": _share(changed[:, s - 1], faces[:, s]) if s else np.nan,
            "named": alive["label"].notna().mean(),
            "born_label": _share(_reached(born["birth_label"], step), has_final),
            "born_correlation": _share(_reached(born["birth_correlation"], step), faces[:, s]),
            "accuracy": np.asarray(accuracy)[s],
        }  # fmt: skip
        rows.append(row | {name: alive[name].median() for name in SCORES})
    return pd.DataFrame(rows)[list(LAYERS)]


def _by_step(trajectories: pd.DataFrame, name: str, n_steps: int) -> npt.NDArray[np.object_]:
    """Return one column [face, step]."""
    return trajectories[name].to_numpy(dtype=object).reshape(-1, n_steps)


def _or_missing(numbers: npt.NDArray[np.int64]) -> pd.Series:
    """Return whole numbers of which those below 0 are missing."""
    return pd.Series(numbers, dtype="Int64").mask(pd.Series(numbers) < 0)


def _reached(births: pd.Series, step: int) -> npt.NDArray[np.bool_]:
    return np.asarray((births <= step).fillna(False), dtype=bool)


def _share(holds: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> float:
    return float(holds[among].mean()) if among.any() else float("nan")
