"""``polysem facets``: the groups that each unit's exemplars fall into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def facets(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    sites: Annotated[
        str | None, typer.Option(help="Globs of sites, comma-separated. Default: all.")
    ] = None,
    most: Annotated[int, typer.Option(help="Facets looked for at most.", min=2, max=12)] = 5,
    seed: Annotated[int, typer.Option(help="Of the null and of resamples.", min=0)] = 0,
) -> None:
    """Divide each unit's exemplars into facets, and tell whether they are more than one blob.

    Compares crops of where a unit fired if these are embedded (polysem embed --crops), else whole
    images. Prints a summary by site; units are in RUN/tables/unit_facets.parquet, facets in
    RUN/tables/facets.parquet.

    Example: [bold]polysem facets runs/a[/bold]
    """
    import pandas as pd

    from polysem.analysis.facet_table import facets as divide
    from polysem.cli.tables import print_table
    from polysem.store.run import Run

    opened = Run.open(run)
    units, parts = divide(opened, sites=sites, most=most, seed=seed)
    living = units[units["facets"] > 0]
    groups = living.groupby(["site", "tail"], sort=False)
    summary = pd.DataFrame(
        {
            "faces": groups.size(),
            "mean facets": groups["facets"].mean(),
            "more than one": groups["facets"].agg(lambda count: (count > 1).mean()),
            "silhouette": groups["silhouette"].median(),
            "stability": groups["stability"].median(),
        }
    ).reset_index()
    seen = "crops" if (units["seen"] == "crops").all() else "images"
    print_table(summary, title=f"Facets of {len(living):,} living faces of units, by {seen}")
    print(f"{len(parts):,} facets; unit_facets.parquet and facets.parquet are in {run / 'tables'}")
