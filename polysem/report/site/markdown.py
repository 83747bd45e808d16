"""The report as one Markdown file with pictures: what pages say, for GitHub and for printing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from polysem.report.cluster_map import cluster_map
from polysem.report.exemplars import Images
from polysem.report.figures import contact_sheet
from polysem.report.head_curves import drop_curves
from polysem.report.head_graph import interaction_graph
from polysem.report.head_maps import importance_map, interaction_matrix
from polysem.report.markdown import escaped, markdown_table
from polysem.report.overview import run_overview
from polysem.report.page import number, save
from polysem.report.site.extras import Whole, shrunk_picture
from polysem.report.site.faces import all_faces, scores_of
from polysem.report.site.parts import Content, Missing, Shown
from polysem.sites import parse_site

__all__ = ["write_markdown"]

#: The file, which GitHub shows with its folder.
_FILE = "README.md"

#: Units of a run that are drawn, rows of its table, and images of each gallery.
_DRAWN, _ROWS, _GALLERY = 3, 20, 6

#: Scores of units that stand in the table where a run holds them.
_SCORES = ("excess_rank", "ms_above_chance", "selectivity", "auroc", "facets", "kurtosis")

_Contents = Mapping[tuple[str, str], Content]


def write_markdown(whole: Whole, contents: _Contents, images: Sequence[Images], title: str) -> Path:
    """Write ``README.md`` and its pictures into the folder of a report, and return the file.

    Parameters
    ----------
    whole : Whole
    contents : mapping of (str, str) to Content
        What each page says, by its slug and the key of its run (empty for pages of all runs).
    images : sequence of callable
        One a run, as for `report.figures.contact_sheet`.
    title : str
    """
    lines = [f"# {escaped(title)}", ""]
    overviews = {one["key"]: one for one in contents["index", ""].context["overviews"]}
    for shown, of_run in zip(whole.runs, images, strict=True):
        said = {slug: content for (slug, key), content in contents.items() if key == shown.key}
        lines += [f"## {escaped(shown.name)}", ""] if len(whole.runs) > 1 else []
        lines += _overview(shown, overviews[shown.key])
        lines += _neurons(shown, of_run)
        lines += _heads(shown, said["heads"])
        lines += _groups(shown, said["map"])
    lines += _comparisons(whole, contents["comparison", ""])
    lines += _evolutions(contents["evolution", ""])
    lines += _explanations(contents["explanations", ""])
    lines += _missing([one for content in contents.values() for one in content.missing])
    lines += _methods(contents["methods", ""])
    place = whole.folder / _FILE
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


def _overview(shown: Shown, said: Mapping[str, Any]) -> list[str]:
    lines = _beware(said["warnings"])
    lines += _table(
        ("", "", "interval", "meaning"),
        [(one.name, one.value, one.interval, one.meaning) for one in said["figures"]],
    )
    lines += _table(("what was probed", ""), said["facts"])
    columns = ("site", "units", "dead", *(name.lower() for name in said["sites"]["columns"]))
    rows = [
        (row["site"], f"{row['units']:,}", f"{row['dead']:,}", *map(_spread, row["cells"]))
        for row in said["sites"]["rows"]
    ]
    lines += ["Medians over units, in brackets the middle half of them:", ""]
    lines += _table(columns, rows)
    return [*lines, *_drawn(shown, "overview", run_overview(shown.run), "The run at a glance")]


def _spread(cell: Mapping[str, Any]) -> str:
    return f"{cell['median']} ({cell['range']})" if "range" in cell else str(cell["median"])


def _neurons(shown: Shown, images: Images) -> list[str]:
    """Return a table of the units that stand out, and pictures of a few."""
    run = shown.run
    faces = all_faces(run)
    living = faces[~faces["dead"].to_numpy(dtype=bool)]
    if not len(living):
        return []
    best, how = _standing_out(living)
    titles = {score.name: score.title for score in scores_of(run, faces)}
    scores = [name for name in _SCORES if name in titles]
    rows = [
        (row["site"], str(row["unit"]), row["tail"], _called(row),
         *(_score(name, row[name]) for name in scores))
        for row in best.head(_ROWS).to_dict("records")
    ]  # fmt: skip
    columns = ("site", "unit", "tail", "answers to", *(titles[name].lower() for name in scores))
    lines = ["### Neurons", "", f"The units that {how}:", "", *_table(columns, rows)]
    for site, unit in _to_draw(best):
        figure = contact_sheet(run, site, unit, images)
        words = f"What excites unit {unit} of {site}"
        lines += _drawn(shown, f"{site}-{unit}", figure, words)
    return lines


def _standing_out(faces: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return faces, those first that people look for first, and by what they are ordered."""
    if "named" in faces and faces["named"].fillna(False).astype(bool).any():
        named = faces[faces["named"].fillna(False).astype(bool)]
        return named.sort_values("auroc", ascending=False), "their names tell best"
    if "excess_rank" in faces and faces["excess_rank"].notna().any():
        order = faces.assign(clear=-faces.get("ms_above_chance", 0.0))  # most have rank 1
        return order.sort_values(["excess_rank", "clear"]), "answer to the fewest things"
    return faces.sort_values("kurtosis", ascending=False), "few images excite far more than others"


def _to_draw(best: pd.DataFrame) -> Iterator[tuple[str, int]]:
    """Yield the first units of the table, one a site; neurons where there are any."""
    parts = best["site"].map(lambda site: parse_site(site).part)
    neurons = best[parts == "mlp.hook_post"]
    first = (neurons if len(neurons) else best).drop_duplicates("site").head(_DRAWN)
    yield from zip(first["site"], first["unit"].astype(int), strict=True)


def _score(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "facets" and value == value else number(float(value))


def _called(row: Mapping[Any, Any]) -> str:
    if isinstance(row.get("concept"), str) and row.get("named"):
        return str(row["concept"])
    best = row.get("best_class")
    return f"class {best}" if isinstance(best, str) else "–"


def _heads(shown: Shown, said: Content) -> list[str]:
    if said.empty:
        return []
    run = shown.run
    lines = ["### Heads", "", escaped(str(said.context["facts"])), ""]
    lines += _table(
        ("statistic", "value", "interval", "meaning"),
        [(one["name"], one["value"], one["interval"], one["meaning"])
         for one in said.context["network"]],
    )  # fmt: skip
    for name, figure, words in (
        ("heads", importance_map(run), "What the network loses without each head"),
        ("interactions", interaction_matrix(run), "Heads that cover for each other or fight"),
        ("graph", interaction_graph(run), "The strongest interactions between heads"),
        ("dropped", drop_curves({shown.name: run}), "Accuracy as heads are dropped"),
    ):
        lines += _drawn(shown, name, figure, words)
    return lines


def _groups(shown: Shown, said: Content) -> list[str]:
    if said.empty:
        return []
    lines = ["### Groups of units", "", escaped(str(said.context["quality"])), ""]
    lines += _table(
        ("group", "faces", "sites", "main site", "tightness", "top class"),
        [(str(one["cluster"]), f"{one['faces']:,}", str(one["sites"]), one["main_site"],
          one["tightness"], one["top_class"] or "–") for one in said.context["groups"]],
    )  # fmt: skip
    return [*lines, *_drawn(shown, "map", cluster_map(shown.run), "Map of the units")]


def _comparisons(whole: Whole, said: Content) -> list[str]:
    lines = []
    for extra, one in zip(whole.of_kind("comparison"), said.context["comparisons"], strict=True):
        lines += [f"## {escaped(one['title'])}", "", f"{escaped(one['data'])}.", ""]
        lines += [f"- **{escaped(name)}**: {escaped(runs)}" for name, runs in one["arms"]]
        lines += ["", *_beware(one["notes"])]
        if (extra.path / "forest.png").is_file():
            picture = shrunk_picture(extra.path / "forest.png", whole.folder, f"{extra.key}/forest")
            lines += [f"![Effects with their intervals]({picture['src']})", ""]
        lines += _folded("All measures", _table(one["columns"], one["rows"]))
    return lines


def _evolutions(said: Content) -> list[str]:
    lines = []
    for one in said.context["evolutions"]:
        lines += [f"## {escaped(one['title'])}", "", escaped(one["lead"]), ""]
        lines += _beware(one["notes"])
        lines += _table(
            ("", "", "meaning"),
            [(figure["name"], figure["value"], figure["meaning"]) for figure in one["figures"]],
        )
        for picture, words in (*one["pictures"], *one["strips"]):
            lines += [f"![{escaped(words)}]({picture['src']})", ""]
        lines += _folded("All numbers", _table(one["columns"], one["rows"]))
    return lines


def _explanations(said: Content) -> list[str]:
    lines = []
    for one in said.context["galleries"]:
        lines += [f"## Explanations: {escaped(one['name'])}", "", f"{escaped(one['facts'])}", ""]
        for item in one["items"][:_GALLERY]:
            words = [words for words, _ in item["pictures"]]
            cells = [f"![{escaped(name)}]({picture['src']})" for name, picture in item["pictures"]]
            lines += [
                f"**{escaped(item['target'])}** {escaped(item['value'])}, {escaped(item['key'])}",
                "",
                _row(map(escaped, words)), _row("---" for _ in words), _row(cells), "",
            ]  # fmt: skip
    return lines


def _missing(missing: Sequence[Missing]) -> list[str]:
    if not missing:
        return []
    rows = [f"- {escaped(one.what)}: {_code(one.command)}" for one in dict.fromkeys(missing)]
    return ["## Not in this report yet", "", *rows, ""]


def _methods(said: Content) -> list[str]:
    lines = ["## Methods", ""]
    for topic, formulas in said.context["topics"].items():
        lines += [f"### {escaped(topic)}", ""]
        for one in formulas:
            source = f" [{escaped(one.source)}]({one.link})" if one.source else ""
            lines.append(f"- **{escaped(one.name)}**: {escaped(one.formula)}. "
                         f"{escaped(one.meaning)}{source}")  # fmt: skip
        lines.append("")
    lines += ["### How to do it again", ""]
    for run in said.context["reproduced"]:
        lines += [f"    {' '.join(command.split())}" for command in run["commands"]]
        lines.append("")
    return lines


def _beware(notes: Sequence[str]) -> list[str]:
    lines = [f"> {escaped(note).removesuffix('.')}." for note in notes]
    return ["\n>\n".join(lines), ""] if lines else []


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not len(rows):
        return []
    values = np.empty((len(rows), len(columns)), dtype=object)
    for i, row in enumerate(rows):
        values[i] = list(row)
    return [*markdown_table(pd.DataFrame(values, columns=list(columns))), ""]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return ["<details><summary>" + escaped(title) + "</summary>", "", *lines, "</details>", ""]


def _drawn(shown: Shown, name: str, figure: Figure, words: str) -> list[str]:
    """Write a figure beside the images of a run, and return the lines that show it."""
    drawn = save(figure, shown.folder / f"{name}.png")
    picture = shrunk_picture(drawn, shown.folder, f"{shown.key}/{name}")
    drawn.unlink()
    return [f"![{escaped(words)}]({picture['src']})", ""]


def _code(text: str) -> str:
    """Return text as code, whatever backticks it holds."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"`{text}`" if len(fence) == 1 else f"{fence} {text} {fence}"
