"""``polysem localise``: all methods of explanation on one model, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

_FILES = ("localisation.csv", "localisation.parquet", "scores.parquet", "curves.parquet",
          "localisation.png", "gallery.png")  # fmt: skip


def localise(
    model: Annotated[str, typer.Option(help="Checkpoint, timm:NAME or another model spec.")],
    data: Annotated[str, typer.Option(help="Images with the labels that the model has learnt.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and pictures.")],
    method: Annotated[
        str, typer.Option(help="Methods, separated by commas; all that the model can have.")
    ] = "all",
    grid: Annotated[
        list[int] | None, typer.Option(help="Cells a side of the grids; may be given again.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images explained.")] = 100,
    grids: Annotated[int, typer.Option(help="Grids of each size.")] = 50,
    limit: Annotated[int, typer.Option(help="Images read, to choose from.")] = 1000,
    smooth: Annotated[
        int, typer.Option(help="Odd window over which grid maps are averaged; 1 for none.")
    ] = 1,
    baseline: Annotated[
        str, typer.Option(help="What replaces deleted pixels: mean (colour) or blur.")
    ] = "mean",
    batch_size: Annotated[int, typer.Option(help="Images explained at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Of images, grids and intervals.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Weights file for timm:NAME or bcos:NAME.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm name of a bare state dict's architecture.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results that are there.")
    ] = False,
) -> None:
    """Compare all methods of explanation on one model: where they point, and how faithfully.

    Grid pointing game, pixel deletion and insertion, and on drawn images (shapes) the share of
    evidence inside of the object. Writes localisation.csv and .parquet, scores.parquet (before
    averaging), curves.parquet, localisation.png and gallery.png.

    Example: [bold]polysem localise --model data/models/shapes_micro_bcos.safetensors
    --data "shapes:test?label=colour" --out runs/localise[/bold]
    """
    from polysem.cli.outputs import require_free
    from polysem.cli.tables import print_table
    from polysem.explain.localise import localise as compare
    from polysem.explain.pictures import open_model
    from polysem.report.explanations import gallery_figure, localisation_figure
    from polysem.report.page import save
    from polysem.store.tables import save_table

    require_free(out, _FILES, overwrite=overwrite)
    loaded = open_model(model, device, weights=weights, arch=arch)
    found = compare(
        loaded, data, methods=method, grids=tuple(grid or (2,)), n_images=images, n_grids=grids,
        limit=limit, smooth=smooth, baseline=baseline,  # type: ignore[arg-type]
        batch_size=batch_size, seed=seed, device=device,
    )  # fmt: skip
    print_table(_wide(found.table))
    for note in found.notes:
        print(f"note: {note}")
    title, subtitle = f"Explanations of {loaded.name}", f"{model}, images of {data}"
    gallery = found.gallery
    pictures = {
        "localisation.png": localisation_figure(found.table, title=title, subtitle=subtitle),
        "gallery.png": gallery_figure(
            gallery.pictures,
            gallery.maps,
            gallery.titles,
            masks=gallery.masks,
            colours=gallery.colours,
            title=title,
            subtitle=subtitle,
        ),
    }
    written = [
        *save_table(found.table, out, "localisation"),
        *save_table(found.scores, out, "scores", endings=(".parquet",)),
        *save_table(found.curves, out, "curves", endings=(".parquet",)),
        *(save(figure, out / name) for name, figure in pictures.items()),
    ]
    for path in written:
        print(f"wrote {path}")


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each method and a column for each metric, with half its interval."""
    half = (table["high"] - table["low"]) / 2
    cells = [
        f"{value:.2f}" if plus != plus else f"{value:.2f} ± {plus:.2f}"
        for value, plus in zip(table["value"], half, strict=True)
    ]
    wide = table.assign(cell=cells).set_index(["method", "metric"])["cell"].unstack(sort=False)
    return wide.reset_index()
