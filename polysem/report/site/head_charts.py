"""Charts of heads for the site, as plotly reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from polysem.report.head_graph import strongest_pairs
from polysem.report.head_maps import order_alike
from polysem.report.page import number
from polysem.report.site.parts import rounded
from polysem.store.run import Run

__all__ = [
    "PAIRS", "WAYS", "drop_curve", "graph_of_pairs", "importance", "matrix_of_pairs",
    "suppression_graph",
]  # fmt: skip

#: Ways of taking a head away, as in the columns of ``tables/heads.parquet``.
WAYS = {"zero": "put to zero", "mean": "put to its mean", "resample": "of another image"}

#: Pairs of each kind in the graph.
PAIRS = 15


def names_of(heads: pd.DataFrame) -> list[str]:
    """Return what heads are called, layer.head, in the order of the table."""
    return [f"{layer}.{head}" for layer, head in zip(heads["layer"], heads["head"], strict=True)]


def importance(heads: pd.DataFrame) -> dict[str, Any]:
    """Return heat maps [layer, head], one for each way of taking a head away."""
    layers, n_heads = list(dict.fromkeys(heads["layer"])), int(heads["head"].max()) + 1
    traces: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"height": 150 + 26 * len(layers), "annotations": notes}
    for i, (way, title) in enumerate(WAYS.items()):
        name = f"importance_{way}"
        values = heads[name].to_numpy(dtype=float).reshape(len(layers), n_heads)
        low, high = (heads[f"{name}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        sure = ((low > 0) | (high < 0)).reshape(values.shape)
        said = [
            f"head {head}: {number(value)} ({number(a)} to {number(b)})"
            for head, value, a, b in zip(
                names_of(heads), values.reshape(-1).tolist(), low, high, strict=True
            )
        ]
        size = float(np.nanmax(np.abs(values))) or 1.0
        axis = "" if i == 0 else str(i + 1)
        traces.append({
            "type": "heatmap", "z": rounded(values), "x": [str(h) for h in range(n_heads)],
            "y": [str(layer) for layer in layers], "zmin": -size, "zmax": size,
            "colorscale": "--diverging", "showscale": False, "xgap": 2, "ygap": 2,
            "text": np.where(sure, "•", "").tolist(), "texttemplate": "%{text}",
            "customdata": np.array(said).reshape(values.shape).tolist(),
            "hovertemplate": "%{customdata}<extra></extra>",
            "xaxis": f"x{axis}", "yaxis": f"y{axis}",
        })  # fmt: skip
        start = i * 0.345
        layout[f"xaxis{axis}"] = {
            "domain": [start, start + 0.31], "title": {"text": "head"}, "type": "category",
            "showgrid": False, "anchor": f"y{axis}",
        }  # fmt: skip
        layout[f"yaxis{axis}"] = {
            "title": {"text": "block" if i == 0 else ""}, "type": "category", "showgrid": False,
            "anchor": f"x{axis}", "showticklabels": i == 0,
        }  # fmt: skip
        notes.append({
            "text": title, "x": start, "y": 1, "xref": "paper", "yref": "paper",
            "xanchor": "left", "yanchor": "bottom", "showarrow": False,
        })  # fmt: skip
    return {"data": traces, "layout": layout}


def _square(pairs: pd.DataFrame, n: int, column: str) -> np.ndarray:
    matrix = np.zeros((n, n))
    i, j = np.triu_indices(n, 1)
    matrix[i, j] = matrix[j, i] = pairs[column].to_numpy(dtype=float)
    return matrix


def matrix_of_pairs(heads: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """Return the interaction of all pairs, heads that behave alike next to each other."""
    matrix = _square(pairs, len(heads), "interaction")
    order = order_alike(matrix)
    names = [names_of(heads)[k] for k in order]
    shown = matrix[np.ix_(order, order)]
    values = np.abs(pairs["interaction"].to_numpy(dtype=float))
    size = float(np.quantile(values, 0.99)) if len(values) else 1.0
    np.fill_diagonal(shown, np.nan)
    return {
        "data": [{
            "type": "heatmap", "z": rounded(shown, 3), "x": names, "y": names,
            "zmin": -(size or 1.0), "zmax": size or 1.0, "colorscale": "--diverging",
            "hovertemplate": "%{y} and %{x}: %{z}<extra></extra>",
            "colorbar": {"thickness": 12, "outlinewidth": 0, "len": 0.6},
        }],
        "layout": {
            "height": 620,
            "xaxis": {"type": "category", "showgrid": False, "constrain": "domain"},
            "yaxis": {"type": "category", "showgrid": False, "scaleanchor": "x",
                      "autorange": "reversed", "constrain": "domain"},
        },
    }  # fmt: skip


def graph_of_pairs(heads: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """Return heads as discs, block after block, joined where they fight or cover for each other."""
    fights, cover = strongest_pairs(pairs, -1, PAIRS), strongest_pairs(pairs, 1, PAIRS)
    kinds = [(fights, "--lower", "fight, or one repairs the other"),
             (cover, "--upper", "cover for each other")]  # fmt: skip
    return _joined(heads, kinds, "interaction")


def suppression_graph(heads: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any] | None:
    """Return the pairs that write against each other into the correct logit."""
    if "suppression" not in pairs:
        return None
    strongest = pairs.sort_values("suppression", ascending=False).head(2 * PAIRS)
    chosen = strongest[strongest["suppression"] > 0]
    return _joined(heads, [(chosen, "--lower", "write against each other")], "suppression")


def _joined(
    heads: pd.DataFrame, kinds: list[tuple[pd.DataFrame, str, str]], column: str
) -> dict[str, Any]:
    layers = list(dict.fromkeys(heads["layer"]))
    x = {layer: i for i, layer in enumerate(layers)}
    n_heads = int(heads["head"].max()) + 1
    largest = max([float(chosen[column].abs().max()) for chosen, *_ in kinds if len(chosen)] or [1])
    traces: list[dict[str, Any]] = []
    for chosen, colour, said in kinds:
        for row in chosen.to_dict("records"):
            start, end = x[row["layer"]], x[row["layer_2"]]
            # around the heads that are between, within a block or on the way
            middle = (start + end) / 2 + (0.28 if start == end else 0)
            bend = min(0.4, 0.15 * (abs(end - start) - 1)) if start != end else 0
            height = (row["head"] + row["head_2"]) / 2 - bend
            text = (
                f"{row['layer']}.{row['head']} and {row['layer_2']}.{row['head_2']} {said}: "
                f"{number(row[column])}"
            )
            traces.append({
                "type": "scatter", "mode": "lines", "showlegend": False,
                "x": [start, middle, end],
                "y": [row["head"], height, row["head_2"]],
                "line": {"color": colour, "shape": "spline",
                         "width": round(0.8 + 4.2 * abs(row[column]) / largest, 2)},
                "opacity": 0.7, "hoverinfo": "text", "text": text,
            })  # fmt: skip
    gain = heads["importance_zero"].to_numpy(dtype=float)
    biggest = float(np.abs(gain).max()) or 1.0
    traces.append({
        "type": "scatter", "mode": "markers+text", "showlegend": False,
        "x": [x[layer] for layer in heads["layer"]], "y": heads["head"].tolist(),
        "text": [str(head) for head in heads["head"]], "textfont": {"size": 10},
        "marker": {
            "size": rounded(14 + 16 * np.sqrt(np.abs(gain) / biggest), 3),
            "color": ["--line" if one >= 0 else "--card" for one in gain.tolist()],
            "line": {"color": "--soft", "width": 1},
        },
        "hoverinfo": "text",
        "hovertext": [
            f"head {name}: importance {number(one)}"
            for name, one in zip(names_of(heads), gain.tolist(), strict=True)
        ],
    })  # fmt: skip
    return {
        "data": traces,
        "layout": {
            "height": 130 + 52 * n_heads,
            "xaxis": {"tickvals": list(x.values()), "ticktext": [f"block {n}" for n in layers],
                      "showgrid": False, "zeroline": False,
                      "range": [-0.5, len(layers) - 0.5]},
            "yaxis": {"visible": False, "range": [n_heads - 0.4, -0.6]},
            "hovermode": "closest",
        },
    }  # fmt: skip


def drop_curve(run: Run) -> dict[str, Any] | None:
    """Return accuracy against the share of heads dropped at random, with its interval."""
    if not run.has_table("head_drop"):
        return None
    table = run.table("head_drop")
    share = rounded(100 * table["share"].to_numpy())
    low, high = (rounded(100 * table[f"accuracy_{end}"].to_numpy()) for end in ("low", "high"))
    return {
        "data": [
            {"type": "scatter", "mode": "lines", "x": share + share[::-1], "y": high + low[::-1],
             "fill": "toself", "line": {"width": 0}, "fillcolor": "--line", "hoverinfo": "skip",
             "showlegend": False},
            {"type": "scatter", "mode": "lines+markers", "x": share,
             "y": rounded(100 * table["accuracy"].to_numpy()), "line": {"color": "--accent"},
             "showlegend": False,
             "hovertemplate": "%{x} % of heads dropped: %{y} % right<extra></extra>"},
        ],
        "layout": {
            "height": 360,
            "xaxis": {"title": {"text": "heads dropped, %"}},
            "yaxis": {"title": {"text": "accuracy, %"}, "rangemode": "tozero"},
        },
    }  # fmt: skip
