"""``polysem bench explain``: what each method costs, in bare forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_explain(
    out: Annotated[Path, typer.Option(help="Folder for table.csv.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Model to measure; may be given several times.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images explained together.", min=1)] = 16,
    repeats: Annotated[int, typer.Option(help="Pairs of bare pass and explanation.", min=1)] = 7,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Cost of every method of explanation, in bare forward passes over the same images.

    Example: [bold]polysem bench explain --out runs/bench[/bold]
    """
    from polysem.cli.tables import write_table
    from polysem.explain.bench import MODELS
    from polysem.explain.bench import bench_explain as measure

    table = measure(
        models=tuple(model) if model else MODELS,
        batch_size=batch_size,
        repeats=repeats,
        device=device,
        report=print,
    )
    write_table(table, out)
