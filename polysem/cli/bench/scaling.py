"""``polysem bench scaling``: how the cost of a probe grows, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_scaling(
    out: Annotated[Path, typer.Option(help="Folder for table.csv, slopes.csv and scaling.png.")],
    images: Annotated[int, typer.Option(help="Images of the whole probes.", min=64)] = 2048,
) -> None:
    """Cost of a probe over images, units, exemplars per unit and processes, with fitted slopes.

    Example: [bold]polysem bench scaling --out runs/scaling[/bold]
    """
    from polysem.cli.tables import write_table
    from polysem.probe.bench_scaling import bench_scaling as measure
    from polysem.report.page import save
    from polysem.report.scaling import scaling_figure, slopes

    table = measure(n_probed=images, report=print)
    write_table(table, out)
    write_table(slopes(table), out, name="slopes")
    save(scaling_figure(table), out / "scaling.png")
    print(f"wrote {out / 'scaling.png'}")
