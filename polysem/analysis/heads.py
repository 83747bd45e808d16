"""Tables of attention heads, from the arrays that `polysem heads` put into a run.

One table of heads, one of pairs, one split by class and the random-drop curve, each with
intervals over images; what they come to for a network as a whole is in `coadaptation`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from polysem.analysis.resampling import interval, resampled_mean, resamplings
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = [
    "ABLATIONS", "class_table", "drop_table", "head_table", "pair_table", "suppression",
    "symmetric", "write_tables",
]  # fmt: skip

Floats = npt.NDArray[np.float64]

#: The ways in which a head is taken away, the first one the gate at 0.
ABLATIONS = ("zero", "mean", "resample")

_PROFILE = {
    "pattern_entropy": "mean attention entropy, nats",
    "pattern_distance": "mean distance of attended patches, patch widths",
    "class_share": "attention of patches to the class token; NaN without",
    "self_share": "attention of patches to themselves",
    "neighbour_share": "attention of patches to the 8 around",
    "previous_share": "attention of patches to the one before in reading order",
    "duplicate_share": "attention to other patches of the same pixels; NaN if there are none",
}

_INTERVAL = "; 95 % bootstrap interval over images"

_PLACE = {"layer": "block", "head": "head within the block"}

_PAIR = {
    "layer": "block of the first head",
    "head": "first head",
    "layer_2": "block of the second head, the same or a later one",
    "head_2": "second head",
}


def head_table(run: Run) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return one row a head, and what its columns mean.

    Importance is how much worse the cost gets without the head; below 0 the network does better
    without it.

    Raises
    ------
    RunError
        If the heads of the run were not studied yet.
    """
    gates = run.gates
    weights = resamplings(gates.sizes["image"])
    columns: dict[str, npt.NDArray[np.generic]] = {}
    columns["layer"], columns["head"] = _places(gates)
    meanings = dict(_PLACE)
    target = gates.attrs["target"]
    for way in ABLATIONS:
        gain = gates[f"cost_{way}"] - gates["cost"]
        said = f"rise of the cost ({target}) with the head's output put to {_WAYS[way]}"
        _add(columns, meanings, f"importance_{way}", resampled_mean(weights, _flat(gain)), said)
    if "logit_share" in gates:
        share = resampled_mean(weights, _flat(gates["logit_share"]))
        _add(columns, meanings, "logit_share", share, "direct share of the correct-class logit")
        columns["suppression"] = suppression(_flat(gates["logit_share"])).mean(0).sum(1)
        meanings["suppression"] = (
            "sum over other heads of min(|c_i|, |c_j|) / Σ|c| on images where the two direct "
            "logit shares c have opposite signs"
        )
    pairs = symmetric(gates).mean(0)
    for name, sign in (("rival", -1), ("double", 1)):
        order = (sign * pairs).argmax(1)
        strength = pairs[np.arange(len(pairs)), order]
        there = sign * strength > 0
        columns[f"{name}_layer"] = np.where(there, columns["layer"][order], -1)
        columns[f"{name}_head"] = np.where(there, columns["head"][order], -1)
        columns[f"{name}_interaction"] = np.where(there, strength, np.nan)
    what = {"rival": "most negative: fights, or repairs", "double": "most positive: redundant"}
    for name, text in what.items():
        meanings[f"{name}_layer"] = f"block of the head with the {text}; -1 if there is none"
        meanings[f"{name}_head"] = f"head with the {text}; -1 if there is none"
        meanings[f"{name}_interaction"] = f"interaction with the head with the {text}"
    for name, text in _PROFILE.items():
        columns[name] = resampled_mean(weights[:1], _flat(gates[name]))[0]
        meanings[name] = text
    columns["fixed_share"] = gates["fixed_share"].to_numpy().reshape(-1)
    meanings["fixed_share"] = "positional: 1 if the pattern is the same for all images"
    return pd.DataFrame(columns), meanings


_WAYS = {
    "zero": "nothing",
    "mean": "its mean over images",
    "resample": "that of another image",
}


def pair_table(run: Run) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return one row a pair of heads, and what its columns mean.

    ``interaction`` is estimated for all pairs, ``exact`` computed for some: above 0 the heads
    cover for each other, below 0 they fight, or one only repairs what the other does.

    Raises
    ------
    RunError
        If the heads of the run were not studied yet.
    """
    gates = run.gates
    layers, heads = _places(gates)
    i, j = np.triu_indices(len(layers), 1)
    weights = resamplings(gates.sizes["image"])
    columns: dict[str, npt.NDArray[np.generic]] = {
        "layer": layers[i], "head": heads[i], "layer_2": layers[j], "head_2": heads[j],
    }  # fmt: skip
    meanings = dict(_PAIR)
    _add(
        columns, meanings, "interaction", resampled_mean(weights, symmetric(gates)[:, i, j]),
        f"estimated by {gates.attrs['method']}, mean of both directions",
    )  # fmt: skip
    raw = _square(gates["interaction"]).mean(0)
    columns["disagreement"] = np.abs(raw[i, j] - raw[j, i])
    meanings["disagreement"] = "difference of the two directions of the estimate"
    for name in ("exact", "shapley"):
        if name not in gates:
            continue
        first, second = gates["pair_first"].to_numpy(), gates["pair_second"].to_numpy()
        row = {pair: at for at, pair in enumerate(zip(i.tolist(), j.tolist(), strict=True))}
        rows = [row[pair] for pair in zip(first.tolist(), second.tolist(), strict=True)]
        full = np.full((len(weights), len(i)), np.nan)
        full[:, rows] = resampled_mean(weights, gates[name].to_numpy())
        text = "both heads ablated; NaN where not computed"
        _add(columns, meanings, name, full, text if name == "exact" else _SHAPLEY)
    if "logit_share" in gates:
        columns["suppression"] = suppression(_flat(gates["logit_share"])).mean(0)[i, j]
        meanings["suppression"] = "min(|c_i|, |c_j|) / Σ|c| on images with opposite logit shares c"
        columns["opposition"] = _square(gates["opposition"]).mean(0)[i, j]
        meanings["opposition"] = "mean over tokens of −cos of the two writes where positive"
    columns["divergence"] = _square(gates["divergence"]).mean(0)[i, j]
    meanings["divergence"] = "Jensen–Shannon divergence of the patterns, bits, 0 (same) to 1"
    columns["cka"] = gates["cka"].to_numpy().reshape(len(layers), -1)[i, j]
    meanings["cka"] = "linear CKA of the outputs over tokens, 0 to 1 (arXiv 1905.00414)"
    return pd.DataFrame(columns), meanings


_SHAPLEY = "mean over random sets of other heads ablated too; NaN where not computed"


def class_table(run: Run) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return one row a class and head with the head's importance for images of that class."""
    gates = run.gates
    layers, heads = _places(gates)
    gain = _flat(gates["cost_zero"] - gates["cost"])
    held_to = gates["held_to"].to_numpy()
    tables = []
    meanings = {"class": "number of the class", "images": "images of it", **_PLACE}
    for number in np.unique(held_to):
        mine = gain[held_to == number]
        columns: dict[str, npt.NDArray[np.generic]] = {
            "class": np.full(len(layers), number), "images": np.full(len(layers), len(mine)),
            "layer": layers, "head": heads,
        }  # fmt: skip
        resampled = resampled_mean(resamplings(len(mine)), mine)
        _add(columns, meanings, "importance_zero", resampled, "rise of the cost without the head")
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True), meanings


def drop_table(run: Run) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return one row a share of heads dropped at random: loss and accuracy, mean over draws."""
    gates = run.gates
    weights = resamplings(gates.sizes["image"])
    columns: dict[str, npt.NDArray[np.generic]] = {"share": gates["share"].to_numpy()}
    meanings = {"share": "share of all heads dropped, 0 to 1"}
    said = f"mean over {gates.sizes['draw']} random orders of dropping"
    for name, array in {"loss": "drop_loss", "accuracy": "drop_correct"}.items():
        curve = gates[array].mean("draw").to_numpy()
        _add(columns, meanings, name, resampled_mean(weights, curve), f"{name}, {said}")
    return pd.DataFrame(columns), meanings


def write_tables(run: Run, tables: Mapping[str, tuple[pd.DataFrame, dict[str, str]]]) -> None:
    """Put tables into the run by name, each with the meaning of its columns."""
    for name, (table, meanings) in tables.items():
        add_table(run, name, table, meanings=meanings)


def suppression(shares: Floats) -> Floats:
    """Return how much heads cancel each other on each image [image, head, head].

    ``min(|c_i|, |c_j|) / Σ|c|`` where the direct logit shares c [image, head] of the two have
    opposite signs, else 0; from 0 to ½.

    >>> suppression(np.array([[3.0, -1.0]]))[0, 0, 1]
    np.float64(0.25)
    """
    size = np.abs(shares)
    total = size.sum(1)[:, None, None]
    smaller = np.minimum(size[:, :, None], size[:, None])
    against = shares[:, :, None] * shares[:, None] < 0
    found: Floats = np.where(against, smaller, 0) / np.where(total > 0, total, 1)
    return found


def symmetric(gates: xr.Dataset, name: str = "interaction") -> Floats:
    """Return interactions [image, head, head] as the mean of both directions."""
    pairs = _square(gates[name])
    return (pairs + pairs.transpose(0, 2, 1)) / 2


def _square(values: xr.DataArray) -> Floats:
    """Return [image, layer, head, layer_2, head_2] as [image, head, head]."""
    n = values.sizes["layer"] * values.sizes["head"]
    return values.to_numpy().astype(np.float64).reshape(-1, n, n)


def _flat(values: xr.DataArray) -> Floats:
    """Return [image, layer, head] as [image, head]."""
    ordered = values.transpose("image", "layer", "head").to_numpy()
    return ordered.astype(np.float64).reshape(len(ordered), -1)


def _places(gates: xr.Dataset) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return layer and head of every head in network order."""
    layers, n_heads = gates["layer"].to_numpy().astype(np.int64), gates.sizes["head"]
    return np.repeat(layers, n_heads), np.tile(np.arange(n_heads), len(layers))


def _add(
    columns: dict[str, npt.NDArray[np.generic]],
    meanings: dict[str, str],
    name: str,
    resampled: Floats,
    meaning: str,
) -> None:
    """Add a statistic and the ends of its interval."""
    columns[name], columns[f"{name}_low"], columns[f"{name}_high"] = interval(resampled)
    meanings[name] = meaning
    meanings[f"{name}_low"] = f"lower end{_INTERVAL}"
    meanings[f"{name}_high"] = f"upper end{_INTERVAL}"
