"""``polysem demo``: the main job on what ships with polysem, no network and no data needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polysem.sites import parse_site

if TYPE_CHECKING:
    import pandas as pd

    from polysem.store.run import Run

_DATA = "shapes:test?n={images}&size=64&label=colour"  # what the shipped models were taught


def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs, table, pictures and report.")] = Path(
        "demo"
    ),
    images: Annotated[int, typer.Option(help="Drawn images to show the models.", min=16)] = 2000,
) -> None:
    """Probe the shipped B-cos ViT and its standard twin on drawn images; table, pictures, report.

    Example: [bold]polysem demo --out demo[/bold]
    """
    from polysem.analysis.polysemanticity import polysemanticity
    from polysem.cli.report import write_report
    from polysem.cli.show import write_sheet
    from polysem.cli.tables import print_table
    from polysem.data.shipped import shipped_file
    from polysem.describe.describe import describe_neurons
    from polysem.probe.probe import probe
    from polysem.report.figures import striking_units

    data = _DATA.format(images=images)
    runs: dict[str, Run] = {}
    for name in ("bcos", "vit"):
        print(f"probing shapes_micro_{name} on {images:,} drawn images …")
        runs[name] = probe(
            shipped_file("models", f"shapes_micro_{name}.safetensors"),
            data,
            out=out / name,
            overwrite=True,
        )
    table = compare_twins(runs)
    table.to_csv(out / "table.csv", index=False)
    print_table(table, title="MLP neurons of twins that differ in their layers, by block")
    for name, run in runs.items():
        print(f"{name}: {run.images['correct'].mean():.2%} of the images classified correctly")
    print("kurtosis and sparsity are medians over neurons: higher means excited by fewer images")
    last = [site for site in runs["bcos"].sites if site.endswith("mlp.hook_post")][-1]
    print("naming the neurons of the last block with the small CLIP that ships …")
    for name, run in runs.items():
        names = describe_neurons(run, sites=last, seen="images").labels
        best = names[(names["rank"] == 1) & names["named"]].nlargest(5, "auroc")
        print_table(
            best[["unit", "tail", "concept", "p_value", "auroc"]],
            title=f"{name}: the neurons of {last} that their names tell best",
        )
    for name, run in runs.items():
        for unit in striking_units(run, last, 3):
            print(f"wrote {write_sheet(run, last, unit, out / f'{name}-{last}-{unit}.png')}")
    print("scoring neurons and writing the report …")
    for run in runs.values():
        polysemanticity(run, sites="*.mlp.hook_post")
    page = write_report(list(runs.values()), out / "report", overwrite=True)
    print(f"runs, table.csv and pictures are in {out}; try: polysem show {out / 'bcos'}")
    print(f"the report of both: open {page.absolute().as_uri()}")


def compare_twins(runs: dict[str, Run]) -> pd.DataFrame:
    """Return one row a block: how each run's neurons are excited."""
    import pandas as pd

    columns: dict[str, pd.Series[float]] = {}
    for name, run in runs.items():
        units = run.table("units")
        units = units[units["site"].str.endswith("mlp.hook_post")]
        by_block = units.groupby([parse_site(site).layer for site in units["site"]])
        columns[f"{name} kurtosis"] = by_block["kurtosis"].median()
        columns[f"{name} sparsity"] = by_block["sparsity"].median()
        columns[f"{name} dead"] = by_block["dead"].sum()
    return pd.DataFrame(columns).rename_axis("block").reset_index()
