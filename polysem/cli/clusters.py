"""``polysem clusters``: groups of units, or of facets, that answer to the same things."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def clusters(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    of: Annotated[
        Literal["units", "facets"],
        typer.Option(help="What to group; facets are those that polysem facets found."),
    ] = "units",
    sites: Annotated[
        str | None, typer.Option(help="Globs of sites, comma-separated. Default: all.")
    ] = None,
    feature: Annotated[
        Literal["centroid", "class"] | None,
        typer.Option(help="Compare units by embeddings or class profiles. Default: what is there."),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Members that a group must have. Default: 5 or 0.2 %.", min=2)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture (.png, .pdf, .svg). Default: RUN/clusters.png or facet_clusters.png."
        ),
    ] = None,
) -> None:
    """Group the units of a run, draw the map, and say how far the groups can be trusted.

    With --of facets, group the facets of units instead: two things that one unit answers to may
    belong to different groups.

    Example: [bold]polysem clusters runs/a --sites '*.mlp.hook_post'[/bold]
    """
    from polysem.analysis.clusters import clusters as group
    from polysem.cli.tables import print_table
    from polysem.report.cluster_map import cluster_map
    from polysem.report.page import check_suffix, save
    from polysem.store.run import Run

    opened = Run.open(run)
    start = "" if of == "units" else "facet_"
    place = check_suffix(out or run / f"{start}clusters.png")
    group(opened, of, sites=sites, feature=feature, min_size=min_size)
    print_table(opened.table(f"{start}cluster_summary").head(20), title="The largest groups")
    print_table(opened.table(f"{start}cluster_quality"), title="How far to trust them")
    picture = save(cluster_map(opened, of), place)
    print(f"wrote {opened.path / 'tables' / f'{start}clusters.parquet'} and {picture}")
