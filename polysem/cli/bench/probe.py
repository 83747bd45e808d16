"""``polysem bench probe``: time and memory of a probe beside the bare forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_probe(
    out: Annotated[Path, typer.Option(help="Folder for table.csv.")],
    model: Annotated[
        str, typer.Option(help="Model whose time is measured.")
    ] = "timm:vit_small_patch16_224",
    images: Annotated[int, typer.Option(help="Images per timing.", min=1)] = 256,
    repeats: Annotated[int, typer.Option(help="Pairs of bare and probed passes.", min=1)] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Time and memory of a probe with all default sites, beside the bare forward pass.

    Example: [bold]polysem bench probe --out runs/bench[/bold]
    """
    from polysem.cli.tables import write_table
    from polysem.probe.bench import bench_probe as measure

    table = measure(model=model, n_images=images, repeats=repeats, device=device, report=print)
    write_table(table, out)
