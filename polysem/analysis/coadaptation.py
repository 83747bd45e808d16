"""How far the heads of a network lean on each other: a few numbers for each run, and two runs.

Hypothesis: dropping heads in training (DropHead, arXiv 2004.13342) keeps heads from suppressing
each other. What would speak for it are a lower co-adaptation index, a smaller share of fights,
and a flatter random-drop curve.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from scipy.integrate import trapezoid
from scipy.stats import rankdata

from polysem.analysis.heads import (
    class_table,
    drop_table,
    head_table,
    pair_table,
    suppression,
    symmetric,
    write_tables,
)  # fmt: skip
from polysem.analysis.resampling import interval, resampled_mean, resamplings
from polysem.errors import RunError
from polysem.store.run import Run

__all__ = ["COLUMNS", "add_head_tables", "compare_heads", "network_table"]

Floats = npt.NDArray[np.float64]

#: What the columns of the table of a network are.
COLUMNS = {
    "statistic": "what is measured",
    "value": "over all images studied",
    "low": "lower end, 95 % bootstrap interval over images; NaN where there is none",
    "high": "upper end, 95 % bootstrap interval over images; NaN where there is none",
    "meaning": "what a value says",
}


def add_head_tables(run: Run) -> pd.DataFrame:
    """Make all tables of heads from the arrays of a run, put them into it, return the network's.

    They are ``heads``, ``head_pairs``, ``heads_by_class``, ``head_drop`` and ``head_network``.

    Raises
    ------
    RunError
        If the heads of the run were not studied yet, or the disk refuses.
    """
    network = network_table(run)
    tables = {
        "heads": head_table(run),
        "head_pairs": pair_table(run),
        "heads_by_class": class_table(run),
        "head_drop": drop_table(run),
        "head_network": (network, COLUMNS),
    }
    write_tables(run, tables)
    return network


def network_table(run: Run) -> pd.DataFrame:
    """Return the statistics of a network's heads as a whole, one row each; see `COLUMNS`.

    Raises
    ------
    RunError
        If the heads of the run were not studied yet.
    """
    gates = run.gates
    found = _statistics(gates, resamplings(gates.sizes["image"]))
    rows = []
    for name, values in found.items():
        value, low, high = interval(values)
        rows.append((name, float(value), float(low), float(high), _MEANINGS[name]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def compare_heads(one: Run, other: Run) -> pd.DataFrame:
    """Return the statistics of two networks side by side, and their difference with interval.

    Two runs on the same images are resampled together, so that what makes images hard cancels.

    Parameters
    ----------
    one, other : Run
        Both studied with the same target and method.

    Returns
    -------
    DataFrame
        statistic, a, a_low, a_high, b, b_low, b_high, difference (b − a), difference_low,
        difference_high. Intervals are over images: of the training seed, which matters as much,
        two runs know nothing.

    Raises
    ------
    RunError
        If a run was not studied yet, or the two in different ways.
    """
    a, b = one.gates, other.gates
    for name in ("target", "method"):
        if a.attrs[name] != b.attrs[name]:
            raise RunError(
                f"{one.path} was studied with {name} {a.attrs[name]}, {other.path} with "
                f"{b.attrs[name]}; study one of them again"
            )
    paired = _same_images(one, other)
    first = _statistics(a, resamplings(a.sizes["image"]))
    second = _statistics(b, resamplings(b.sizes["image"], seed=0 if paired else 1))
    rows = []
    for name in first:
        if name in second:
            ends = (interval(first[name]), interval(second[name]))
            change = interval(second[name] - first[name])
            rows.append((name, *map(float, (*ends[0], *ends[1], *change))))
    names = [f"{x}{end}" for x in ("a", "b", "difference") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["statistic", *names])


def _same_images(one: Run, other: Run) -> bool:
    same_data = one.manifest["data"]["fingerprint"] == other.manifest["data"]["fingerprint"]
    return same_data and np.array_equal(one.gates["image"], other.gates["image"])


_MEANINGS = {
    "accuracy": "share of images that are right with all heads",
    "loss": "cross-entropy with all heads, nats",
    "index_within": "Σ|I_ij| / Σ|importance|, over ordered pairs of heads within a block",
    "index_across": "the same over pairs of heads in different blocks",
    "index": "the same over all pairs: 0 if heads do not depend on each other",
    "index_chance": "the same for random parts of z: what the network's width alone would give",
    "index_over_chance": "index divided by index_chance",
    "fight_share": "share of Σ|I_ij| that is negative: heads fight, or one repairs the other",
    "fight_share_chance": "the same for random parts of z",
    "drop_loss_area": "mean loss over the shares of heads dropped, 0 to 1",
    "drop_accuracy_area": "mean accuracy over the shares of heads dropped, 0 to 1",
    "half_accuracy": "accuracy with half of the heads dropped at random",
    "suppression": "sum over pairs of min(|c_i|, |c_j|) / Σ|c| where logit shares c are opposite",
    "opposition": "mean over pairs of −cos of writes where positive",
    "divergence": "mean Jensen–Shannon divergence of two heads' patterns, bits",
    "divergence_within": "the same for heads of one block",
    "cka": "mean linear CKA of two heads' outputs; no interval is kept",
    "cka_within": "the same for heads of one block",
    "rank_correlation": "Spearman, estimated with exact interactions, on the sampled pairs",
    "rank_disagreement": "1 − Spearman between the directions (i, j) and (j, i) of the estimate",
    "rank_correlation_shapley": "Spearman, estimated with Shapley interactions",
}


def _statistics(gates: xr.Dataset, weights: Floats) -> dict[str, Floats]:
    """Return every statistic for each resampling [1 + n]."""

    def mean(values: npt.ArrayLike) -> Floats:
        return resampled_mean(weights, values)

    n_layers, n_heads = gates.sizes["layer"], gates.sizes["head"]
    i, j = np.triu_indices(n_layers * n_heads, 1)
    within = i // n_heads == j // n_heads
    found = {"accuracy": mean(gates["correct"]), "loss": mean(gates["loss"])}
    pairs = mean(symmetric(gates)[:, i, j])
    gain = mean((gates["cost_zero"] - gates["cost"]).to_numpy())
    found |= _index(pairs, gain, within, "")
    if "chance_cost" in gates:
        chance = mean(symmetric(gates, "chance_interaction")[:, i, j])
        alone = mean((gates["chance_cost"] - gates["cost"]).to_numpy())
        at_chance = _index(chance, alone, within, "_chance")
        found |= {name: at_chance[name] for name in ("index_chance", "fight_share_chance")}
        found["index_over_chance"] = _ratio(found["index"], found["index_chance"])
    share = gates["share"].to_numpy()
    loss, correct = (mean(gates[f"drop_{what}"].mean("draw")) for what in ("loss", "correct"))
    found["drop_loss_area"] = trapezoid(loss, share, axis=1)
    found["drop_accuracy_area"] = trapezoid(correct, share, axis=1)
    found["half_accuracy"] = correct[:, int(np.abs(share - 0.5).argmin())]
    if "logit_share" in gates:
        c = gates["logit_share"].to_numpy().astype(np.float64).reshape(len(gates["image"]), -1)
        found["suppression"] = mean(suppression(c)[:, i, j].sum(1))
        found["opposition"] = mean(_upper(gates["opposition"], i, j).mean(1))
    divergence = _upper(gates["divergence"], i, j)
    cka = gates["cka"].to_numpy().reshape(n_layers * n_heads, -1)[i, j]
    found["divergence"], found["cka"] = mean(divergence.mean(1)), _constant(weights, cka)
    if within.any():
        found["divergence_within"] = mean(divergence[:, within].mean(1))
        found["cka_within"] = _constant(weights, cka[within])
    return found | _agreement(gates, mean, pairs)


def _index(
    pairs: Floats, gain: Floats, within: npt.NDArray[np.bool_], end: str
) -> dict[str, Floats]:
    """Return co-adaptation from interactions [1 + n, pair] and importances [1 + n, ...]."""
    size, alone = np.abs(pairs), np.abs(gain).reshape(len(gain), -1).sum(1)
    return {
        f"index_within{end}": _ratio(2 * size[:, within].sum(1), alone),
        f"index_across{end}": _ratio(2 * size[:, ~within].sum(1), alone),
        f"index{end}": _ratio(2 * size.sum(1), alone),
        f"fight_share{end}": _ratio(np.maximum(-pairs, 0).sum(1), size.sum(1)),
    }


def _agreement(
    gates: xr.Dataset, mean: Callable[[npt.ArrayLike], Floats], pairs: Floats
) -> dict[str, Floats]:
    """Return how well the estimate ranks pairs."""
    n = gates.sizes["layer"] * gates.sizes["head"]
    i, j = np.triu_indices(n, 1)
    raw = gates["interaction"].to_numpy().reshape(-1, n, n)
    found = {"rank_disagreement": 1 - _spearman(mean(raw[:, i, j]), mean(raw[:, j, i]))}
    for name, array in (("rank_correlation", "exact"), ("rank_correlation_shapley", "shapley")):
        if array in gates and gates.sizes["pair"] > 1:
            row = np.full((n, n), -1)
            row[i, j] = np.arange(len(i))
            rows = row[gates["pair_first"].to_numpy(), gates["pair_second"].to_numpy()]
            found[name] = _spearman(pairs[:, rows], mean(gates[array]))
    return found


def _spearman(one: Floats, other: Floats) -> Floats:
    """Return the rank correlation of each row; NaN where all values of a row are equal."""
    a, b = (rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (one, other))
    return _ratio((a * b).sum(1), np.sqrt((a**2).sum(1) * (b**2).sum(1)))


def _upper(values: xr.DataArray, i: npt.NDArray[np.intp], j: npt.NDArray[np.intp]) -> Floats:
    n = values.sizes["layer"] * values.sizes["head"]
    return values.to_numpy().astype(np.float64).reshape(-1, n, n)[:, i, j]


def _constant(weights: Floats, values: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        there = values[np.isfinite(values)]
    return np.full(len(weights), there.mean() if len(there) else np.nan)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(denominator > 0, numerator / denominator, np.nan)
    return found
