"""``polysem bench soak``: one long probe, its memory sampled, killed once in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_soak(
    out: Annotated[Path, typer.Option(help="Folder for table.csv.")],
    images: Annotated[int, typer.Option(help="Drawn images.", min=1000)] = 200_000,
    limit: Annotated[
        float, typer.Option(help="Growth of memory that is let pass, as a share.", min=0)
    ] = 0.05,
) -> None:
    """Probe many drawn images in one go, killed and resumed once; memory has to stay flat.

    Example: [bold]polysem bench soak --out runs/soak[/bold]
    """
    from polysem.probe.bench_soak import bench_soak as measure
    from polysem.probe.bench_soak import growth
    from polysem.store.tables import save_table

    table, n_done = measure(n_images=images, report=print)
    (file,) = save_table(table, out, "table", endings=(".csv",))
    grown = growth(table, images)
    print(
        f"{n_done:,} images, {len(table)} samples of memory, {table['rss_mb'].max():,.0f} MiB at "
        f"most; while images were read it moved by {100 * grown:.1f} %"
    )
    print(f"wrote {file}")
    if n_done != images or not grown <= limit:
        raise typer.Exit(1)
