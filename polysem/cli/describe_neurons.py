"""``polysem describe-neurons``: names for the units of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def describe_neurons(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    clip: Annotated[
        str | None,
        typer.Option(
            help="CLIP model: ARCH:TAG, ARCH:FILE, hf-hub:ORG/NAME, or its folder. Default: for "
            "drawn shapes the small one that ships, else ViT-B-32:laion2b_s34b_b79k."
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        typer.Option(
            help="common, dermatology, shapes, or a file: one concept a line, or CSV. Default: "
            "shapes for drawn shapes, else common."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="soft-wpmi, wpmi, mean-embedding, auroc, cosine, cosine-cubed or rank-reorder."
        ),
    ] = "soft-wpmi",
    sites: Annotated[
        str | None, typer.Option(help="Globs of sites, comma-separated. Default: all.")
    ] = None,
    top: Annotated[int, typer.Option(help="Names per unit.", min=1)] = 5,
    rate: Annotated[
        float, typer.Option(help="False discovery rate at which a unit is named.", min=0, max=1)
    ] = 0.05,
    draws: Annotated[int, typer.Option(help="Draws of the null, per site and tail.", min=1)] = 1000,
    data: Annotated[
        str | None, typer.Option(help="Where the images are, if they have moved.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per pass. Default: 64, on a GPU 256.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Name the neurons of a run by what excites them, with a p-value and a test on other images.

    Example: [bold]polysem describe-neurons runs/a --clip ViT-B-32:laion2b_s34b_b79k[/bold]

    Of a run on drawn shapes, without a network: [bold]polysem describe-neurons runs/a[/bold]
    """
    from polysem.cli.tables import print_table
    from polysem.describe.defaults import default_clip, default_vocabulary, misfit
    from polysem.describe.describe import describe_neurons as describe
    from polysem.describe.vocabulary import load_vocabulary
    from polysem.models.clip import load_clip
    from polysem.store.run import Run
    from polysem.store.tables import save_table

    opened = Run.open(run)
    images_of = str(opened.manifest["data"]["name"])
    words = load_vocabulary(concepts or default_vocabulary(images_of))
    towers = load_clip(clip or default_clip(images_of), device=device)
    for note in (*words.notes, misfit(towers, images_of)):
        if note:
            print(f"note: {note}")
    table = describe(
        opened,
        towers,
        concepts=words,
        sites=sites,
        method=method,
        top=top,
        rate=rate,
        n_draws=draws,
        data=data,
        batch_size=batch_size,
        device=device,
    )
    best = table[table["rank"] == 1]
    shown = best[best["named"]].sort_values("auroc", ascending=False)
    columns = ["site", "unit", "tail", "concept", "p_value", "auroc", "rank_correlation"]
    print_table(shown[columns].head(15), title="Named units that their names predict best")
    print(
        f"{len(shown):,} of {len(best):,} units (each tail by itself) have a fitting name among "
        f"{len(words):,} concepts, at a false discovery rate of {rate:g}"
    )
    (file,) = save_table(table, run / "tables", "labels", endings=(".csv",))
    print(f"wrote {run / 'tables' / 'labels.parquet'} and {file}")
