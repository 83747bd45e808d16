"""``polysem bench heads``: what interactions of heads cost, and how well estimates rank them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SHIPPED = Path("data/models/shapes_micro_bcos.safetensors")


def bench_heads(
    out: Annotated[Path, typer.Option(help="Folder for table.csv.")],
    model: Annotated[
        str, typer.Option(help="Model whose time is measured.")
    ] = "timm:vit_small_patch16_224",
    images: Annotated[int, typer.Option(help="Images per timing.", min=1)] = 64,
    pairs: Annotated[int, typer.Option(help="Pairs that are ablated from scratch.", min=2)] = 24,
    batch_size: Annotated[int, typer.Option(help="Rows side by side.", min=1)] = 32,
    hessian: Annotated[bool, typer.Option(help="Also time the Hessian.")] = True,
    trained: Annotated[
        Path, typer.Option(help="Trained model on which estimates are held against exact pairs.")
    ] = _SHIPPED,
) -> None:
    """Time all pairs of heads beside brute force, and rank correlation with exact interactions.

    Example: [bold]polysem bench heads --out runs/bench[/bold]
    """
    from polysem.cli.tables import write_table
    from polysem.probe.heads_bench import bench_heads as measure

    if not trained.is_file():
        print(f"note: {trained} is not here; agreement is measured on {model} alone")
    table = measure(
        model=model,
        n_images=images,
        n_pairs=pairs,
        batch_size=batch_size,
        methods=("gradients", "hessian") if hessian else ("gradients",),
        trained=trained if trained.is_file() else None,
        report=print,
    )
    write_table(table, out)
