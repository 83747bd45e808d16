"""``polysem facets``: the groups that each unit's exemplars fall into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def facets(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    by: Annotated[
        Literal["embeddings", "circuits"],
        typer.Option(help="What is compared: what exemplars look like, or what made them fire."),
    ] = "embeddings",
    sites: Annotated[
        str | None, typer.Option(help="Globs of sites, comma-separated. Default: all there are.")
    ] = None,
    most: Annotated[int, typer.Option(help="Facets looked for at most.", min=2, max=12)] = 5,
    seed: Annotated[int, typer.Option(help="Of the null and of resamples.", min=0)] = 0,
) -> None:
    """Divide each unit's exemplars into facets, and tell whether they are more than one blob.

    Compares crops of where a unit fired if these are embedded (polysem embed --crops), else whole
    images. Prints a summary by site; units are in RUN/tables/unit_facets.parquet, facets in
    RUN/tables/facets.parquet.

    With --by circuits, exemplars are divided by which upstream units made them fire (polysem
    explain --upstream), into unit_circuits.parquet and circuits.parquet, and distances of their
    embeddings tell whether circuits also look apart.

    Example: [bold]polysem facets runs/a[/bold]

    Circuits: [bold]polysem facets runs/a --by circuits[/bold]
    """
    import pandas as pd

    from polysem.analysis.circuits import circuits
    from polysem.analysis.facet_table import facets as looks
    from polysem.cli.tables import print_table
    from polysem.store.run import Run

    divide, noun = (circuits, "circuits") if by == "circuits" else (looks, "facets")
    units, parts = divide(Run.open(run), sites=sites, most=most, seed=seed)
    living = units[units["facets"] > 0]
    groups = living.groupby(["site", "tail"], sort=False)
    columns = {
        "faces": groups.size(),
        f"mean {noun}": groups["facets"].mean(),
        "more than one": groups["facets"].agg(lambda count: (count > 1).mean()),
        "silhouette": groups["silhouette"].median(),
        "stability": groups["stability"].median(),
    }
    if by == "circuits":
        divided = living[living["facets"] > 1].groupby(["site", "tail"], sort=False)
        columns |= {name: divided[name].median() for name in ("within", "across")}
        seen = " and ".join(units["seen"].unique())
    else:
        seen = "crops" if (units["seen"] == "crops").all() else "images"
    summary = pd.DataFrame(columns, index=groups.size().index).reset_index()
    title = f"{noun.capitalize()} of {len(living):,} living faces of units, by {seen}"
    print_table(summary, title=title)
    tables = f"unit_{noun}.parquet and {noun}.parquet are in {run / 'tables'}"
    print(f"{len(parts):,} {noun}; {tables}")
