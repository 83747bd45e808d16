"""``polysem bench describe``: whether names are right, where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_describe(
    out: Annotated[Path, typer.Option(help="Folder for table.csv and units.csv.")],
    clip: Annotated[
        str | None,
        typer.Option(help="CLIP model, as for describe-neurons. Default: the one that ships."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Network that units are spliced into. Default: shipped ViT.")
    ] = None,
    images: Annotated[int, typer.Option(help="Drawn images.", min=500)] = 2000,
    seed: Annotated[int, typer.Option(help="Of images and units.", min=0)] = 0,
) -> None:
    """Name neurons that are known to answer to one concept of drawn images, or to either of two.

    They are spliced into a real ViT, then probed, cropped, divided into facets and named like any
    other, by each similarity function. Hits at k=1: the concept is the first name; at k=2: both
    are among the first names of the facets (by: facets), or the two best names of the unit (by:
    unit). A name counts only if it is the word that was planted: "red circle" is no hit for "red".
    The encoder "ideal" knows what is in every picture; what it misses is the method's doing.

    Example: [bold]polysem bench describe --out runs/names[/bold]
    """
    from polysem.cli.bench.names import names_benchmark
    from polysem.cli.tables import print_table
    from polysem.data.shipped import shipped_file
    from polysem.describe.defaults import default_clip
    from polysem.store.tables import save_table

    network = model or str(shipped_file("models", "shapes_micro_vit.safetensors"))
    table, units, notes = names_benchmark(
        network, clip or default_clip("shapes"), n_images=images, seed=seed, report=print
    )
    save_table(table, out, "table", endings=(".csv",))
    save_table(units, out, "units", endings=(".csv",))
    print_table(table)
    for note in notes:
        print(f"note: {note}")
    print(f"wrote table.csv and units.csv in {out}")
