"""``polysem bench faults``: probes killed at random moments, and whether anything is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_faults(
    out: Annotated[Path, typer.Option(help="Folder for table.csv.")],
    trials: Annotated[int, typer.Option(help="Probes to kill.", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="Of the moments.", min=0)] = 0,
) -> None:
    """Kill probes at random moments (SIGKILL), let them go on, and compare the runs' bytes.

    Example: [bold]polysem bench faults --out runs/faults[/bold]
    """
    from polysem.cli.tables import write_table
    from polysem.probe.bench_faults import bench_faults as measure

    table = measure(trials=trials, seed=seed, report=print)
    write_table(table, out)
    lost = int((~table["identical"]).sum())
    print(f"{len(table) - lost} of {len(table)} killed probes gave the run of an undisturbed one")
    if lost:
        raise typer.Exit(1)
