"""``polysem concepts``: which annotated concepts excite each unit, and how many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def concepts(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    sites: Annotated[
        str | None, typer.Option(help="Globs of sites, comma-separated. Default: all.")
    ] = None,
) -> None:
    """Find the annotated concepts that excite each unit and count the independent ones.

    For runs on data that says what its images show, such as shapes. Prints a summary by site;
    units are in RUN/tables/concepts.parquet.

    Example: [bold]polysem concepts runs/a[/bold]
    """
    import pandas as pd

    from polysem.analysis.concept_table import concepts as find
    from polysem.cli.tables import print_table
    from polysem.store.run import Run

    table = find(Run.open(run), sites=sites)
    groups = table.groupby(["site", "tail"], sort=False)
    common = groups["best_concept"].agg(lambda names: str(names.mode().iloc[0]))
    summary = pd.DataFrame(
        {
            "faces": groups.size(),
            "mean concepts": groups["count"].mean(),
            "none": groups["count"].agg(lambda count: (count == 0).mean()),
            "best AUROC": groups["best_auroc"].median(),
            "commonest concept": common,
        }
    ).reset_index()
    print_table(summary, title=f"Concepts of {len(table):,} faces of units")
    print(f"wrote {run / 'tables' / 'concepts.parquet'}")
