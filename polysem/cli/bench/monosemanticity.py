"""``polysem bench monosemanticity``: the streaming score beside its pairwise definition."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_monosemanticity(
    out: Annotated[Path, typer.Option(help="Folder for table.csv.")],
    units: Annotated[int, typer.Option(help="Units scored.", min=1)] = 3072,
    dim: Annotated[int, typer.Option(help="Dimensions of the embeddings.", min=1)] = 512,
    images: Annotated[
        str, typer.Option(help="Numbers of images, comma-separated.")
    ] = "1000,2000,5000",
) -> None:
    """Time, memory and agreement of the streaming monosemanticity score and its definition.

    Columns: seconds of each, their ratio, memory that streaming adds, largest difference. Beyond
    2,000 images a tenth of the pairs is timed and scaled up.

    Example: [bold]polysem bench monosemanticity --out runs/bench[/bold]
    """
    from polysem.cli.tables import write_table
    from polysem.errors import SpecError
    from polysem.probe.bench_monosemanticity import bench_monosemanticity as measure

    sizes = images.split(",")
    if not all(size.strip().isdecimal() and int(size) > 1 for size in sizes):
        raise SpecError(f"--images {images} has to be numbers of at least 2, such as 1000,2000")
    numbers = tuple(int(size) for size in sizes)
    write_table(measure(n_images=numbers, n_units=units, dim=dim, report=print), out)
