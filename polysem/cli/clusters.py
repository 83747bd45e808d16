"""``polysem clusters``: groups of units that answer to the same things."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def clusters(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    sites: Annotated[
        str | None, typer.Option(help="Globs of sites, comma-separated. Default: all.")
    ] = None,
    feature: Annotated[
        Literal["centroid", "class"] | None,
        typer.Option(help="Compare units by embeddings or class profiles. Default: what is there."),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Faces that a group must have. Default: 5 or 0.2 %.", min=2)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture (.png, .pdf, .svg). Default: RUN/clusters.png.")
    ] = None,
) -> None:
    """Group the units of a run, draw the map, and say how far the groups can be trusted.

    Example: [bold]polysem clusters runs/a --sites '*.mlp.hook_post'[/bold]
    """
    from polysem.analysis.clusters import clusters as group
    from polysem.cli.tables import print_table
    from polysem.report.cluster_map import cluster_map
    from polysem.report.page import check_suffix, save
    from polysem.store.run import Run

    opened = Run.open(run)
    place = check_suffix(out or run / "clusters.png")
    group(opened, sites=sites, feature=feature, min_size=min_size)
    print_table(opened.table("cluster_summary").head(20), title="The largest groups")
    print_table(opened.table("cluster_quality"), title="How far to trust them")
    picture = save(cluster_map(opened), place)
    print(f"wrote {opened.path / 'tables' / 'clusters.parquet'} and {picture}")
