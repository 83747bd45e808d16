"""``polysem polysemanticity``: how many things each unit of a run answers to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polysem.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from polysem.store.run import Run

#: Columns of the printed table, which gives medians over units.
_SHOWN = (
    "kurtosis", "hoyer", "tail_ratio", "selectivity", "effective_classes", "best_class_auroc",
    "excess_rank", "ms", "ms_above_chance", "clarity",
)  # fmt: skip


def polysemanticity(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    sites: Annotated[
        str | None, typer.Option(help="Globs of sites, comma-separated. Default: all.")
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also cluster exemplars as semanticlens does; slow.")
    ] = False,
    dictionary: Annotated[
        str | None,
        typer.Option(help="Also score a learnt dictionary beside the units: nmf or topk_sae."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with another run on the same images, scored before."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the comparison's table.csv and layers.png.")
    ] = None,
) -> None:
    """Score every unit: excitation range, class selectivity, monosemanticity, superposition.

    Works with what the run has: monosemanticity needs embeddings (polysem embed), selectivity
    needs labels. Prints medians by site; all units are in RUN/tables/polysemanticity.parquet.

    Example: [bold]polysem polysemanticity runs/bcos --against runs/vit --out runs/both[/bold]
    """
    from polysem.analysis.polysemanticity import polysemanticity as score
    from polysem.analysis.superposition import superposition
    from polysem.cli.tables import print_table
    from polysem.store.run import Run

    opened = Run.open(run)
    other = None if against is None else Run.open(against)
    if other is not None:
        other.table("polysemanticity")  # before the work, not after
    elif out is not None:
        raise SpecError("--out is for a comparison; name the other run with --against")
    learn = None if dictionary is None else _dictionary(dictionary)
    table = score(opened, sites=sites, peers=peers)
    print_table(by_site(table), title=f"{len(table):,} faces of units; medians over living ones")
    for note in table.attrs["notes"]:
        print(f"note: {note}")
    print_table(superposition(opened, sites=sites), title="Superposition")
    if learn is not None:
        compared = learn(opened, sites).drop(columns=["dictionary", "images"])
        print_table(compared, title=f"Features of {dictionary} beside units, on held-out images")
    print(f"wrote {opened.path / 'tables' / 'polysemanticity.parquet'} and superposition.parquet")
    if other is not None:
        _compare(opened, other, out)


def _compare(first: Run, second: Run, out: Path | None) -> None:
    from polysem.analysis.comparison import compare_runs
    from polysem.cli.tables import print_table
    from polysem.report.comparison_page import short_table
    from polysem.report.layer_figure import layer_figure
    from polysem.report.page import save
    from polysem.store.tables import save_table

    arms = {"this run": [first], "the other": [second]}
    found = compare_runs(arms, tables=["polysemanticity"])
    compared = found.layers
    title = f"{first.path} against {second.path}; all their tables: polysem compare"
    print_table(short_table(compared), title=title)
    for note in found.notes:
        print(f"note: {note}")
    if out is None:
        return
    (file,) = save_table(compared, out, "table", endings=(".csv",))
    print(f"wrote {file}")
    names = (first.manifest["model"]["name"], second.manifest["model"]["name"])
    print(f"wrote {save(layer_figure(compared, names), out / 'layers.png')}")


def _dictionary(name: str) -> Callable[[Run, str | None], pd.DataFrame]:
    """Return a function of run and sites that scores the dictionary of this name."""
    from polysem.analysis.dictionary import DICTIONARIES, dictionary_baseline
    from polysem.errors import did_you_mean

    if name not in DICTIONARIES:
        near = did_you_mean(name, DICTIONARIES) or f"; known are {', '.join(DICTIONARIES)}"
        raise SpecError(f"no dictionary is called {name!r}{near}")
    return lambda run, sites: dictionary_baseline(run, DICTIONARIES[name], sites=sites)


def by_site(table: pd.DataFrame) -> pd.DataFrame:
    """Return medians over the living faces of each site and tail."""
    order = {site: i for i, site in enumerate(table["site"].unique())}
    groups = table.groupby(["site", "tail"], sort=False)
    counts = groups["dead"].agg(faces="size", dead="sum")
    living = table[~table["dead"]].groupby(["site", "tail"], sort=False)
    shown = [name for name in _SHOWN if table[name].notna().any()]
    medians: pd.DataFrame = counts.join(living[shown].median()).reset_index()
    return medians.sort_values("site", key=lambda s: s.map(order), kind="stable")
