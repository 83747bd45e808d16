"""``polysem compare-heads``: two networks' heads side by side, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare_heads(
    run_a: Annotated[Path, typer.Argument(help="Run that `polysem heads` studied.")],
    run_b: Annotated[Path, typer.Argument(help="Another one.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for table.csv and the drop curves of both.")
    ] = None,
) -> None:
    """Compare co-adaptation, fights, drop curves and redundancy of the heads of two networks.

    Example: [bold]polysem compare-heads runs/plain runs/drophead --out runs/compared[/bold]
    """
    from polysem.analysis.coadaptation import compare_heads as compare
    from polysem.cli.tables import print_table, write_table
    from polysem.report.head_curves import drop_curves
    from polysem.report.page import save
    from polysem.store.run import Run

    runs = {str(path): Run.open(path) for path in (run_a, run_b)}
    table = compare(Run.open(run_a), Run.open(run_b))
    print(f"a: {run_a}\nb: {run_b}")
    if out is None:
        print_table(table)
    else:
        write_table(table, out)
        print(f"wrote {save(drop_curves(runs), out / 'dropped.png')}")
    print(
        "difference is b − a; intervals are over images: how much another training seed would "
        "change is not in them"
    )
