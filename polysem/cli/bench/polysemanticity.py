"""``polysem bench polysemanticity``: which scores find the units that answer to several things."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_polysemanticity(
    out: Annotated[Path, typer.Option(help="Folder for table.csv, splice.csv and scores.png.")],
    images: Annotated[int, typer.Option(help="Drawn images.", min=500)] = 4000,
    units: Annotated[
        int, typer.Option(help="Planted units for each number of concepts.", min=4)
    ] = 60,
    seed: Annotated[int, typer.Option(help="Of images and units.", min=0)] = 0,
    model: Annotated[
        str | None, typer.Option(help="Network that units are spliced into. Default: shipped ViT.")
    ] = None,
) -> None:
    """Hold every score against units whose number of concepts is known.

    Units that answer to one to six concepts of drawn images are made as formulas and spliced into
    a ViT. The table tells, for each score and level of noise, how well it tells one concept from
    several (auroc) and follows their number (spearman). The headline score is the one without
    labels that does best on one half of the units; the table is of the other half.

    Example: [bold]polysem bench polysemanticity --out runs/planted[/bold]
    """
    from polysem.cli.bench.planted import MODERATE, at_noise, planted_benchmark
    from polysem.cli.tables import print_table
    from polysem.data.shipped import shipped_file
    from polysem.report.planted import scores_figure
    from polysem.store.tables import save_table

    network = model or str(shipped_file("models", "shapes_micro_vit.safetensors"))
    table, splice = planted_benchmark(
        network, n_images=images, per_count=units, seed=seed, report=print
    )
    save_table(table, out, "table", endings=(".csv",))
    save_table(splice, out, "splice", endings=(".csv",))
    scores_figure(table).savefig(out / "scores.png", dpi=150)
    for measure in ("auroc", "spearman"):
        title = f"{measure} at noise {MODERATE} of the signal, on the half reported"
        print_table(at_noise(table, MODERATE, measure), title=title)
    summary = splice.groupby("noise")["correlation"].agg(["median", "min"]).reset_index()
    print_table(summary, title="Spliced units: correlation with the signal planted")
    low = int((~splice["realised"]).sum())
    print(
        f"{low} of {len(splice)} spliced units follow it too loosely (realised in splice.csv); "
        "they count all the same"
    )
    headline = table.loc[table["headline"], "score"].iloc[0]
    print(f"headline score, chosen on the other half of the units: {headline}")
    print(f"wrote table.csv, splice.csv and scores.png in {out}")
