"""The page of comparisons: what differs between arms of networks, by how much, and how surely."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from polysem.report.comparison_page import short_table
from polysem.report.page import number
from polysem.report.site.extras import Extra, Whole
from polysem.report.site.parts import Content, Missing, rounded

__all__ = ["comparison"]

#: Colours of pairs of arms: the theme's first, then Okabe and Ito's.
_COLOURS = ("--accent", "--lower", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

#: False discovery rate at which a difference counts as found.
_RATE = 0.05


def comparison(whole: Whole) -> Content:
    """Return the page of all comparisons that were given."""
    given = whole.of_kind("comparison")
    missing = []
    if not given:
        runs = " ".join(str(one.run.path) for one in whole.runs)
        more = "" if len(whole.runs) > 1 else " RUN_B"
        command = f"polysem compare {runs}{more} --out DIR; polysem report {runs} DIR --out SITE"
        missing.append(Missing("Comparison of networks", command))
    return Content(
        {"comparisons": [_one(extra) for extra in given]},
        missing=missing,
        charts=bool(given),
        empty=not given,
    )


def _one(extra: Extra) -> dict[str, Any]:
    table = extra.table("comparison")
    arms, data = extra.manifest["arms"], extra.manifest["data"]
    of_units = table[table["delta"].notna()]
    of_networks = table[(table["site"] == "") & table["difference"].notna()]
    forests = [
        {
            "id": f"forest-{extra.key}-{i}",
            "title": site,
            "words": "Cliff's delta: the chance that a unit of the first arm is higher than one of "
            "the other at the same layer, minus the reverse.",
            "figure": _forest(rows, "delta"),
        }
        for i, (site, rows) in enumerate(of_units.groupby("site", sort=False))
    ]
    if len(of_networks):
        forests.append({
            "id": f"forest-{extra.key}-networks", "title": "Whole networks",
            "words": "First arm minus the other, over the larger of the two values.",
            "figure": _forest(_relative(of_networks), "relative"),
        })  # fmt: skip
    short = short_table(table)
    return {
        "name": extra.name,
        "title": " against ".join(arms),
        "arms": [
            (name, ", ".join(f"{run['model']} ({run['path']})" for run in runs))
            for name, runs in arms.items()
        ],
        "data": f"{data['n_images']:,} images of {data['name']}",
        "notes": extra.manifest["notes"],
        "surest": _surest(table),
        "forests": forests,
        "columns": list(short.columns),
        "rows": short.to_numpy().tolist(),
    }


def _relative(rows: pd.DataFrame) -> pd.DataFrame:
    """Return differences as shares of the larger value, so that one scale holds all measures."""
    size = rows[["value", "other_value"]].abs().max(axis=1).replace(0.0, np.nan)
    ends = {f"relative{end}": rows[f"difference{end}"] / size for end in ("", "_low", "_high")}
    return rows.assign(**ends).dropna(subset=["relative"])


def _forest(rows: pd.DataFrame, column: str) -> dict[str, Any]:
    """Return a line for each measure, a colour for each pair of arms; filled where q is small."""
    names = list(dict.fromkeys(rows["measure"].str.replace("_", " ")))[::-1]
    pairs = list(rows[["arm", "other"]].drop_duplicates().itertuples(index=False, name=None))
    traces = []
    for k, (arm, other) in enumerate(pairs):
        mine = rows[(rows["arm"] == arm) & (rows["other"] == other)]
        value, low, high = (
            mine[f"{column}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high")
        )
        y = np.array([names.index(name) for name in mine["measure"].str.replace("_", " ")])
        sure = _is_sure(mine, column).to_numpy()
        colour = _COLOURS[k % len(_COLOURS)]
        traces.append({
            "type": "scatter", "mode": "markers", "name": f"{_plain(arm)} − {_plain(other)}",
            "x": rounded(value), "y": rounded(y + 0.6 * ((k + 0.5) / len(pairs) - 0.5)),
            "error_x": {
                "type": "data", "symmetric": False, "thickness": 1.6, "width": 0, "color": colour,
                "array": rounded(np.nan_to_num(high - value)),
                "arrayminus": rounded(np.nan_to_num(value - low)),
            },
            "marker": {
                "size": 9, "line": {"color": colour, "width": 1.6},
                "color": [colour if yes else "--paper" for yes in sure.tolist()],
            },
            "hoverinfo": "text",
            "text": [_said(row, column) for row in mine.to_dict("records")],
        })  # fmt: skip
    return {
        "data": traces,
        "layout": {
            "height": 130 + 27 * len(names),
            "showlegend": len(pairs) > 1,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
            "xaxis": {"zeroline": True, "zerolinecolor": "--soft", "zerolinewidth": 1},
            "yaxis": {"tickvals": list(range(len(names))), "ticktext": list(map(_plain, names)),
                      "range": [-0.7, len(names) - 0.3], "showgrid": False, "zeroline": False},
            "margin": {"l": 170, "r": 20, "t": 50, "b": 40},
            "hovermode": "closest",
        },
    }  # fmt: skip


def _is_sure(rows: pd.DataFrame, column: str) -> pd.Series[bool]:
    """Return which effects differ from 0 by their interval, and by the test where there is one.

    A test that takes layers as they are can be sure where layers differ in both directions.
    """
    excludes = (rows[f"{column}_low"] > 0) | (rows[f"{column}_high"] < 0)
    return excludes & ~(rows["q"] > _RATE)


def _plain(text: str) -> str:
    """Return text that plotly, which reads a few HTML tags in labels, shows as it is.

    >>> _plain("<b>&")
    '&lt;b&gt;&amp;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _said(row: dict[Any, Any], column: str) -> str:
    ends = [number(row[f"{column}{end}"]) for end in ("", "_low", "_high")]
    arms = f"{row['arm']} {number(row['value'])}, {row['other']} {number(row['other_value'])}"
    text = (
        f"{row['measure']}: {ends[0]} ({ends[1]} to {ends[2]}), q = {number(row['q'], 2)}; {arms}"
    )
    return _plain(text)


def _surest(table: pd.DataFrame) -> list[dict[str, str]]:
    """Return the differences that are found, the largest first; a few."""
    size = table["delta"].abs().fillna(_relative(table)["relative"].abs())
    sized = table.assign(size=size)  # before any row goes: assigned to no row, it brings its own
    found = sized[_is_sure(sized, "difference")].sort_values("size", ascending=False)
    return [
        {
            "measure": row["measure"].replace("_", " "),
            "site": row["site"] or "whole network",
            "arms": f"{row['arm']} {number(row['value'])}, {row['other']} "
                    f"{number(row['other_value'])}",
            "difference": f"{number(row['difference'])} ({number(row['difference_low'])} to "
                          f"{number(row['difference_high'])})",
            "q": number(row["q"], 2),
        }
        for row in found.head(8).to_dict("records")
    ]  # fmt: skip
