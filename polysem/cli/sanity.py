"""``polysem sanity``: whether explanations change when the model forgets what it has learnt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

_FILES = ("sanity.csv", "sanity.parquet", "sanity.png")


def sanity(
    model: Annotated[str, typer.Option(help="Checkpoint, timm:NAME or another model spec.")],
    data: Annotated[str, typer.Option(help="Images; labels are not needed.")],
    out: Annotated[Path, typer.Option(help="Folder for the table and the picture.")],
    method: Annotated[
        str, typer.Option(help="Methods, separated by commas; all that the model can have.")
    ] = "all",
    permuted: Annotated[
        str | None, typer.Option(help="The same architecture trained on permuted labels.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="What a layer is: block, or module (each layer of a block).")
    ] = "block",
    images: Annotated[int, typer.Option(help="Images explained.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Images explained at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Of images, fresh weights and intervals.")] = 0,
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
    """Draw a model's layers anew, and see which explanations notice.

    From the logits down, adding layer after layer (cascading) and one at a time (independent). A
    faithful method's maps lose their similarity to those of the trained model; an edge detector's,
    shown beside, do not. Writes sanity.csv, sanity.parquet and sanity.png.

    Example: [bold]polysem sanity --model ckpt.pt --data photos/ --out runs/sanity[/bold]
    """
    from polysem.cli.outputs import require_free
    from polysem.cli.tables import print_table
    from polysem.explain.pictures import open_model
    from polysem.explain.sanity import sanity_checks
    from polysem.report.explanations import sanity_figure
    from polysem.report.page import save
    from polysem.store.tables import save_table

    require_free(out, _FILES, overwrite=overwrite)
    loaded = open_model(model, device, weights=weights, arch=arch)
    table = sanity_checks(
        loaded, data, methods=method, permuted=permuted, by=by,  # type: ignore[arg-type]
        n_images=images, batch_size=batch_size, seed=seed, device=device,
    )  # fmt: skip
    print_table(_short(table), title="Rank correlation with the maps of the trained model")
    figure = sanity_figure(
        table, title=f"Sanity checks: {loaded.name}", subtitle=f"{model}, images of {data}"
    )
    for written in (*save_table(table, out, "sanity"), save(figure, out / "sanity.png")):
        print(f"wrote {written}")


def _short(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each method: one layer drawn anew, half of them, all; labels permuted."""
    rows = table[(table["similarity"] == "spearman") & (table["order"] != "independent")]
    layers = list(rows.loc[rows["depth"] > 0, "layer"].unique())
    names = {
        layers[0]: layers[0],
        layers[(len(layers) - 1) // 2]: f"to {layers[(len(layers) - 1) // 2]}",
        layers[-1]: "all layers",
        "labels": "permuted labels",
    }
    wide = rows.set_index(["method", "layer"])["value"].unstack("layer", sort=False).round(2)
    kept = [layer for layer in names if layer in wide]
    return wide[kept].rename(columns=names).reset_index()
