"""The page of heads: how much each matters, which fight or cover for each other, and each alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from polysem.report.head_graph import strongest_pairs
from polysem.report.head_maps import head_facts
from polysem.report.page import number
from polysem.report.site.exemplar_images import head_images
from polysem.report.site.head_charts import (
    PAIRS,
    WAYS,
    drop_curve,
    graph_of_pairs,
    importance,
    matrix_of_pairs,
    suppression_graph,
)  # fmt: skip
from polysem.report.site.packed import packed_rows, signed_levels
from polysem.report.site.parts import Content, Missing, Shown, rounded, write_data
from polysem.store.run import Run

__all__ = ["heads_page"]

#: Statistics of all heads together that stand at the top.
_HEADLINE = {
    "index_over_chance": "Co-adaptation over chance",
    "fight_share": "Share of fights",
    "drop_accuracy_area": "Accuracy with heads dropped",
}

#: Of a head's own statistics, those with an interval and what they are called.
_PROFILE = {
    "logit_share": "Direct share of the correct logit",
    "suppression": "Suppression by opposite logit shares",
    "pattern_entropy": "Entropy of attention, nats",
    "pattern_distance": "Distance attended, patch widths",
    "class_share": "Attention to the class token",
    "self_share": "Attention to the patch itself",
    "neighbour_share": "Attention to the patches around",
    "previous_share": "Attention to the patch before",
    "duplicate_share": "Attention to patches of the same pixels",
    "fixed_share": "Positional: 1 if the same for all images",
}

#: Classes named for a head.
_CLASSES = 3


def heads_page(shown: Shown) -> Content:
    """Write the data of all heads and return their page."""
    run = shown.run
    spec, data = run.manifest["model"]["spec"], run.manifest["data"]["name"]
    if not (run.has_table("heads") and (run.path / "gates.zarr").is_dir()):
        command = f"polysem heads --model {spec} --data '{data}' --out {run.path}"
        return Content({"facts": ""}, missing=[Missing("Study of heads", command)], empty=True)
    heads, pairs = run.table("heads"), run.table("head_pairs")
    file = write_data(shown, "heads", _payload(shown, heads))
    missing = []
    if not run.has_table("head_labels"):
        command = f"polysem describe-neurons {run.path} --clip MODEL --heads"
        missing.append(Missing("Names of heads", command))
    network = run.table("head_network")
    return Content(
        {
            "facts": head_facts(run),
            "network": [_statistic(row) for row in network.to_dict("records")],
            "headline": [
                _statistic(row) | {"title": _HEADLINE[row["statistic"]]}
                for row in network.to_dict("records")
                if row["statistic"] in _HEADLINE
            ],
            "importance": importance(heads),
            "matrix": matrix_of_pairs(heads, pairs),
            "graph": graph_of_pairs(heads, pairs),
            "suppression": suppression_graph(heads, pairs),
            "dropped": drop_curve(run),
            "pairs": _pair_rows(pairs),
        },
        data=[f"data/{shown.key}/images.js", file],
        missing=missing,
        charts=True,
    )


def _statistic(row: dict[Any, Any]) -> dict[str, str]:
    low, high = row["low"], row["high"]
    return {
        "name": row["statistic"].replace("_", " "),
        "value": number(row["value"]),
        "interval": "" if np.isnan(low) else f"{number(low)} to {number(high)}",
        "meaning": row["meaning"],
    }


def _pair_rows(pairs: pd.DataFrame) -> list[dict[str, str]]:
    """Return the strongest pairs of both kinds as rows of a table."""
    rows = []
    for sign, what in ((-1, "fight, or one repairs"), (1, "cover for each other")):
        for row in strongest_pairs(pairs, sign, PAIRS).to_dict("records"):
            rows.append({
                "first": f"{row['layer']}.{row['head']}",
                "second": f"{row['layer_2']}.{row['head_2']}",
                "what": what,
                "value": number(row["interaction"]),
                "interval": f"{number(row['interaction_low'])} to "
                            f"{number(row['interaction_high'])}",
            })  # fmt: skip
    return rows


def _payload(shown: Shown, heads: pd.DataFrame) -> dict[str, Any]:
    """Return all that the pages of single heads show."""
    run = shown.run
    rows, gains = head_images(run)
    images = run.gates["image"].to_numpy()
    n = len(heads)
    rows, gains = rows.reshape(n, *rows.shape[2:]), gains.reshape(n, *gains.shape[2:])
    slots = np.where(rows >= 0, shown.sprites.slots[images[np.maximum(rows, 0)]], -1)
    maps = run.gates["attention_map"].transpose("layer", "head", "image", "y", "x")
    grid = [int(maps.sizes["y"]), int(maps.sizes["x"])]
    every = maps.to_numpy().reshape(n, maps.sizes["image"], *grid)
    chosen = every[np.arange(n)[:, None], np.maximum(rows, 0).reshape(n, -1)]
    columns = [name for name in _PROFILE if name in heads and heads[name].notna().any()]
    by_class = _by_class(run)
    named = _head_names(run)
    payload = []
    for k, row in enumerate(heads.to_dict("records")):
        place = (row["layer"], row["head"])
        payload.append({
            "layer": row["layer"], "head": row["head"],
            "importance": {
                way: rounded([row[f"importance_{way}{end}"] for end in ("", "_low", "_high")], 3)
                for way in WAYS
            },
            "profile": rounded([row[name] for name in columns], 3),
            "rival": _partner(row, "rival"), "double": _partner(row, "double"),
            "classes": by_class.get(place, []), "name": named.get(place),
            "slots": [[slot for slot in kind if slot >= 0] for kind in slots[k].tolist()],
            "gains": [
                [g for g, s in zip(kind, there, strict=True) if s >= 0]
                for kind, there in zip(rounded(gains[k], 3), slots[k].tolist(), strict=True)
            ],
            "maps": packed_rows(signed_levels(chosen[k : k + 1]))[0],
        })  # fmt: skip
    return {
        "ways": WAYS, "grid": grid, "most": rows.shape[-1],
        "profile": [_PROFILE[name] for name in columns], "heads": payload,
    }  # fmt: skip


def _partner(row: dict[Any, Any], which: str) -> list[Any] | None:
    if row[f"{which}_layer"] < 0:
        return None
    (strength,) = rounded([row[f"{which}_interaction"]], 3)
    return [row[f"{which}_layer"], row[f"{which}_head"], strength]


def _by_class(run: Run) -> dict[tuple[int, int], list[list[Any]]]:
    """Return for each head the classes whose images need it most, with interval."""
    if not run.has_table("heads_by_class"):
        return {}
    table = run.table("heads_by_class").sort_values("importance_zero", ascending=False)
    names = run.manifest["model"]["classes"] or run.classes or []
    found: dict[tuple[int, int], list[list[Any]]] = {}
    for row in table.groupby(["layer", "head"]).head(_CLASSES).to_dict("records"):
        number_ = int(row["class"])
        name = names[number_] if number_ < len(names) else f"class {number_}"
        numbers = rounded([row[f"importance_zero{end}"] for end in ("", "_low", "_high")], 3)
        found.setdefault((row["layer"], row["head"]), []).append([name, *numbers])
    return found


def _head_names(run: Run) -> dict[tuple[int, int], str]:
    if not run.has_table("head_labels"):
        return {}
    labels = run.table("head_labels")
    best = labels[(labels["rank"] == 1) & labels["named"]].sort_values("p_value")
    first = best.drop_duplicates(["layer", "head"])
    return {
        (layer, head): concept
        for layer, head, concept in zip(
            first["layer"], first["head"], first["concept"], strict=True
        )
    }
