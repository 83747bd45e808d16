"""How many things does each unit answer to: one tidy table of every score, from a run.

What the run kept of all images is used where it is enough (moments, class sums, streamed
monosemanticity); the rest is computed from the stored activations, of all images if the run was
probed with ``pooled``, else of its random sample.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from polysem.analysis import excitation, peer_scores, selectivity
from polysem.analysis.excess_rank import excess_rank
from polysem.analysis.faces import Face, chosen_sites, faces
from polysem.analysis.monosemanticity import (
    monosemanticity_error,
    monosemanticity_score,
    unit_length,
)
from polysem.analysis.scaling import Floats
from polysem.errors import RunError
from polysem.progress import progress_bar
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = ["MEANINGS", "polysemanticity", "what_is_missing"]

_SHIFTED = "of activations above the unit's smallest"

#: What each column of ``tables/polysemanticity.parquet`` holds.
MEANINGS = {
    "site": "where in the network",
    "unit": "index of the unit at its site",
    "tail": "upper or lower: units that fire both ways have two faces, a row each; a lower face "
    "is scored on the negative activation",
    "pool": "how tokens became one number per image: max, min, or value where there are no tokens",
    "dead": "the unit gave the same value on all images: every score is missing",
    "images": "images that exact statistics rest on",
    "scored_images": "images whose activations are stored (all with --pooled, else a sample): "
    "what tail_ratio, gini, near_max_share, half_mass_share and best_class_auroc rest on",
    "mean": "mean activation over images, turned for lower faces",
    "mean_low": "lower end of its 95 % interval over images",
    "mean_high": "upper end",
    "kurtosis": "excess kurtosis over images, 0 if normal, at least -2; higher: fewer images",
    "hoyer": f"Hoyer's sparsity {_SHIFTED}, 0 to 1; 1: one image alone (Hoyer 2004, JMLR 5:1457)",
    "treves_rolls": f"1 - (mean a)² / mean a², {_SHIFTED}, 0 to 1; higher: fewer images (Treves "
    "and Rolls 1991; Rolls and Tovee 1995)",
    "tail_ratio": "(q99.9 - q50) / (q75 - q25) of activations, from 0; 2.3 if normal; infinite "
    "where the middle half of images gives one value",
    "gini": f"Gini's index {_SHIFTED}, 0 to 1; higher: fewer images (0811.4706)",
    "near_max_share": "share of images within 5 % of the unit's range of its largest value, 0 to "
    "1; high: saturated",
    "half_mass_share": f"smallest share of images that holds half of the sum {_SHIFTED}, 0 to 1; "
    "lower: fewer images",
    "selectivity": "(μ_max - μ_rest) / (μ_max + μ_rest) of class means above the unit's smallest, "
    "0 to 1; 1: one class alone (Morcos et al. 1803.06959)",
    "selectivity_low": "lower end of its 95 % interval over images, by the bootstrap of the probe",
    "selectivity_high": "upper end",
    "effective_classes": "exp of the entropy of the shares of class means, 1 to the number of "
    "classes; lower is more selective",
    "best_class": "class that the activation tells best from the rest",
    "best_class_auroc": "its area under the ROC curve, 0.5 chance to 1 (INVERT, Bykov et al. "
    "2023); the largest of many, so above 0.5 by chance too",
    "ms": "monosemanticity: mean cosine between images weighted by activation, -1 to 1, higher is "
    "more monosemantic (Pach et al. 2504.02821)",
    "ms_low": "lower end of its 95 % interval over images",
    "ms_high": "upper end",
    "ms_above_chance": "(ms - c) / (1 - c), c the mean cosine of all pairs of images: 0 for a "
    "unit that fires at random, 1 at best; compares across encoders",
    "excess_rank": "effective number of things in the embeddings that excite the unit, 1 to 32, "
    "lower is more monosemantic; rests on scored_images; missing where nothing stands out of the "
    "null; the headline score: of those without labels it does best on planted units (polysem "
    "bench polysemanticity)",
    "clarity": "mean cosine between exemplars, at most 1, higher is better (semanticlens, "
    "2501.05398)",
    "redundancy": "largest cosine between the unit's mean exemplar and that of another unit of "
    "the face, at most 1, lower is better (semanticlens, 2501.05398)",
    "two_centre": "1 - cosine of the centres of two clusters of exemplars, 0 to 2, lower is "
    "better (semanticlens, 2501.05398); computed on request",
}


def polysemanticity(
    run: Run, *, sites: str | None = None, peers: bool = False, progress: bool = True
) -> pd.DataFrame:
    """Score every unit of a run and keep the table in it.

    Parameters
    ----------
    run : Run
    sites : str, optional
        Globs of sites, comma-separated; by default all.
    peers : bool, default False
        Also cluster each unit's exemplars as semanticlens does (milliseconds a unit).
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    DataFrame
        One row a face (site, unit, tail); columns as in `MEANINGS`, missing values NaN.
        ``attrs["notes"]`` says what the run lacks. Also written to
        ``tables/polysemanticity.parquet``.

    Raises
    ------
    PolysemError
        A site that is not there, a damaged run, a full disk.
    """
    parts = []
    todo = [face for site in chosen_sites(run, sites) for face in faces(run, site)]
    embeddings = _embeddings(run)
    with progress_bar(unit="faces", show=progress) as move:
        for done, face in enumerate(todo):
            parts.append(_score(face, embeddings, peers=peers))
            move("score", done + 1, len(todo))
    table = pd.concat(parts, ignore_index=True)[list(MEANINGS)]
    add_table(run, "polysemanticity", table, meanings=MEANINGS)
    table.attrs = {"columns": MEANINGS, "notes": what_is_missing(run)}
    return table


def what_is_missing(run: Run) -> list[str]:
    """Return a sentence for each thing that a run lacks, and what is scored all the same."""
    notes = []
    labels = run.images["label"]
    if labels.isna().all():
        notes.append(
            "the images have no labels: class selectivity is left out; excitation range and "
            "monosemanticity need none"
        )
    elif labels.nunique() < 2:
        notes.append(
            f"all {len(labels):,} images are of one class: class selectivity needs two and is "
            "left out; all else is scored"
        )
    if not _has_embeddings(run):
        notes.append(
            "the images have no embeddings: monosemanticity, clarity and redundancy are left out; "
            f"make them with: polysem embed {run.path}"
        )
    ranks = int(run.manifest["options"].get("top_k", 0))
    if run.manifest["n_images"] < ranks:
        notes.append(
            f"{run.manifest['n_images']:,} images are fewer than the {ranks} exemplars asked for: "
            "scores of exemplars rest on what there is"
        )
    return notes


def _has_embeddings(run: Run) -> bool:
    return (run.path / "embeddings.zarr").is_dir()


def _embeddings(run: Run) -> tuple[npt.NDArray[np.float64], str] | None:
    """Return the embeddings of all images and their fingerprint, or None."""
    if not _has_embeddings(run):
        return None
    found = run.embeddings
    if len(found) != len(run.images):
        raise RunError(
            f"{run.path} holds {len(found):,} embeddings for {len(run.images):,} images; make "
            f"them again with: polysem embed {run.path} --overwrite"
        )
    return unit_length(found.to_numpy()), str(found.attrs["fingerprint"])


def _score(
    face: Face, embeddings: tuple[npt.NDArray[np.float64], str] | None, *, peers: bool
) -> pd.DataFrame:
    n, n_images = face.n_units, int(face.units["count"])
    columns: dict[str, object] = dict.fromkeys(MEANINGS, np.full(n, np.nan))
    columns |= {
        "site": face.site, "unit": np.arange(n), "tail": face.tail, "pool": face.pool,
        "dead": face.constant, "images": n_images, "scored_images": len(face.rows),
        "best_class": None,
    }  # fmt: skip
    columns |= _of_all_images(face, n_images) | _of_classes(face) | _of_stored(face)
    if embeddings is not None:
        columns |= _of_embeddings(face, *embeddings) | _of_exemplars(face, embeddings[0], peers)
    table = pd.DataFrame(columns)
    table["best_class"] = table["best_class"].astype(object)
    return table


def _of_all_images(face: Face, n_images: int) -> dict[str, Floats]:
    mean, variance = face.sign * face.moment("mean"), face.moment("variance")
    if "replicate_mean" in face.units:
        error = face.of_tail["replicate_mean"].to_numpy().astype(np.float64).std(0, ddof=1)
        reach = _t(face.units.sizes["replicate"]) * error
    else:
        reach = 1.96 * np.sqrt(variance / n_images)
    above = mean - face.smallest
    square = variance + above**2
    sparse = {
        "kurtosis": face.moment("kurtosis"),
        "hoyer": excitation.hoyer_from_moments(above, square, n_images),
        "treves_rolls": excitation.treves_rolls_from_moments(above, square),
    }
    living = {name: np.where(face.constant, np.nan, value) for name, value in sparse.items()}
    return {"mean": mean, "mean_low": mean - reach, "mean_high": mean + reach, **living}


def _of_classes(face: Face) -> dict[str, Floats]:
    if "class_sum" not in face.units:
        return {}
    count = face.units["class_count"].to_numpy()
    seen = count > 0
    if seen.sum() < 2:
        return {}
    means = face.sign * face.moment("class_sum")[seen] / count[seen, None] - face.smallest
    means = np.where(face.constant, np.nan, means).clip(min=0)  # rounding of a mean at the minimum
    index = selectivity.selectivity_index(means)
    found: dict[str, Floats] = {
        "selectivity": index,
        "effective_classes": selectivity.effective_classes(means),
    }
    if "replicate_class_mean" in face.units:
        drawn = face.of_tail["replicate_class_mean"].to_numpy()[:, seen] - face.smallest
        each = np.array([selectivity.selectivity_index(one.clip(min=0)) for one in drawn])
        reach = _t(len(each)) * each.std(0, ddof=1)
        found["selectivity_low"] = (index - reach).clip(0, 1)
        found["selectivity_high"] = (index + reach).clip(0, 1)
    return found


def _of_stored(face: Face) -> dict[str, object]:
    parts: dict[str, list[Floats]] = {}
    scores = (
        ("tail_ratio", excitation.tail_ratio),
        ("gini", excitation.gini_index),
        ("near_max_share", excitation.near_max_share),
        ("half_mass_share", excitation.half_mass_share),
    )
    labels = face.run.images["label"].to_numpy()[face.rows]
    labelled = not pd.isna(labels).any() and len(set(labels)) > 1
    best: list[npt.NDArray[np.int64]] = []
    for some in face.chunks():
        values = face.activations[:, some]
        for name, score in scores:
            parts.setdefault(name, []).append(score(values))
        if labelled:
            aurocs = selectivity.class_aurocs(values, labels.astype(np.int64))
            parts.setdefault("best_class_auroc", []).append(aurocs.max(0))
            best.append(np.where(np.isnan(aurocs[0]), 0, aurocs.argmax(0)))
    found: dict[str, object] = {name: np.concatenate(each) for name, each in parts.items()}
    if labelled:
        named = _class_names(face.run, np.unique(labels.astype(np.int64)))[np.concatenate(best)]
        named[face.constant] = None
        found["best_class"] = named
    return found


def _class_names(run: Run, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    named = run.classes
    return np.array([str(c) if named is None else named[c] for c in classes], dtype=object)


def _of_embeddings(
    face: Face, directions: npt.NDArray[np.float64], fingerprint: str
) -> dict[str, Floats]:
    streamed = (face.run.manifest.get("embedding") or {}).get("fingerprint") == fingerprint
    if streamed and "monosemanticity" in face.units:
        score = face.of_tail["monosemanticity"].to_numpy()
        reach = np.full(len(score), np.nan)
        if "replicate_monosemanticity" in face.units:
            drawn = face.of_tail["replicate_monosemanticity"].to_numpy().astype(np.float64)
            reach = _t(len(drawn)) * drawn.std(0, ddof=1)
    else:
        seen = directions[face.rows]
        chunks = [face.activations[:, some] for some in face.chunks()]
        score = np.concatenate([monosemanticity_score(some, seen) for some in chunks])
        reach = 1.96 * np.concatenate([monosemanticity_error(some, seen) for some in chunks])
    n = len(directions)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = ((directions.sum(0) ** 2).sum() - n) / np.float64(n * n - n)
        above = (score - chance) / (1 - chance)
    return {
        "ms": score,
        "ms_low": (score - reach).clip(-1, 1),
        "ms_high": (score + reach).clip(-1, 1),
        "ms_above_chance": above,
        "excess_rank": excess_rank(face.activations, directions[face.rows]),
    }


def _of_exemplars(
    face: Face, directions: npt.NDArray[np.float64], peers: bool
) -> dict[str, Floats]:
    images = face.of_tail["top_image"].to_numpy()  # [unit, rank]
    there = np.isfinite(images) & ~face.constant[:, None]
    rows = face.rows_of(np.where(there, images, face.run.images["image"].iloc[0]))
    size = max(1, (1 << 24) // max(1, images.shape[1] * directions.shape[1]))
    parts: dict[str, list[Floats]] = {"clarity": [], "two_centre": []}
    means = []
    for start in range(0, face.n_units, size):
        some = slice(start, start + size)
        exemplars = np.where(there[some, :, None], directions[rows[some]], np.nan)
        parts["clarity"].append(peer_scores.clarity_score(exemplars))
        if peers:
            parts["two_centre"].append(peer_scores.two_centre_polysemanticity(exemplars))
        with np.errstate(invalid="ignore", divide="ignore"):
            n = there[some].sum(1)[:, None]
            means.append(np.nansum(exemplars, axis=1) / np.where(n > 0, n, np.nan))
    found = {name: np.concatenate(each) for name, each in parts.items() if each}
    return found | {"redundancy": peer_scores.redundancy_score(np.concatenate(means)[:, None])}


def _t(n_replicates: int) -> float:
    """Return how many standard errors, estimated from so many replicates, hold 95 %."""
    return float(scipy.stats.t.ppf(0.975, n_replicates - 1))
