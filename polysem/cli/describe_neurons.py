"""``polysem describe-neurons``: names for the units of a run, its facets and heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import pandas as pd

    from polysem.describe.describe import Names
    from polysem.store.run import Run

#: Contact sheets drawn by ``--sheets``.
_N_SHEETS = 24


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
    seen: Annotated[
        Literal["auto", "crops", "images"],
        typer.Option(
            help="What is looked at of an exemplar: the crop where it fired, or the whole image. "
            "auto: crops where the place is known. images: fewer passes."
        ),
    ] = "auto",
    facets: Annotated[
        bool, typer.Option("--facets", help="Name each facet of a unit too, with its share.")
    ] = False,
    heads: Annotated[bool, typer.Option("--heads", help="Name attention heads too.")] = False,
    sheets: Annotated[
        Path | None,
        typer.Option(help=f"Folder for contact sheets of the {_N_SHEETS} best predicted units."),
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

    Writes RUN/tables/labels.parquet, .csv and .md; facet_labels and head_labels likewise.

    Example: [bold]polysem describe-neurons runs/a --clip ViT-B-32:laion2b_s34b_b79k[/bold]

    Of a run on drawn shapes, without a network, with several names for polysemantic units:
    [bold]polysem describe-neurons runs/a --facets --sheets runs/a/sheets[/bold]
    """
    from polysem.cli.tables import print_table
    from polysem.describe.defaults import default_clip, default_vocabulary, misfit
    from polysem.describe.describe import describe_neurons as describe
    from polysem.describe.vocabulary import load_vocabulary
    from polysem.models.clip import load_clip
    from polysem.store.run import Run

    opened = Run.open(run)
    images_of = str(opened.manifest["data"]["name"])
    words = load_vocabulary(concepts or default_vocabulary(images_of))
    towers = load_clip(clip or default_clip(images_of), device=device)
    for note in (*words.notes, misfit(towers, images_of), _alone(len(words), method)):
        if note:
            print(f"note: {note}")
    names = describe(
        opened, towers, concepts=words, sites=sites, method=method, seen=seen, facets=facets,
        heads=heads, top=top, rate=rate, n_draws=draws, data=data, batch_size=batch_size,
        device=device,
    )  # fmt: skip
    best = names.labels[names.labels["rank"] == 1]
    shown = best[best["named"]].sort_values("auroc", ascending=False)
    columns = ["site", "unit", "tail", "concept", "p_value", "auroc", "rank_correlation"]
    if not shown.empty:
        print_table(shown[columns].head(15), title="Named units that their names predict best")
    print(
        f"{len(shown):,} of {len(best):,} units (each tail by itself) have a fitting name among "
        f"{len(words):,} concept{'s' * (len(words) != 1)}, at a false discovery rate of {rate:g}"
    )
    if shown.empty and len(best) > rate * (draws + 1):
        print(
            f"note: {draws:,} draws give no p below {1 / (draws + 1):.2g}, too much for a single "
            f"one of {len(best):,} units; more --draws can tell"
        )
    _tell_of_parts(names, rate)
    for file in _write(opened, names):
        print(f"wrote {file}")
    if sheets is not None:
        _draw(opened, shown, sheets, data)


def _alone(n_concepts: int, method: str) -> str | None:
    """Return a sentence if a method has nothing to tell a concept from."""
    if n_concepts > 1 or method not in ("soft-wpmi", "wpmi"):
        return None
    return f"{method} weighs concepts against each other and cannot name any unit by a single one"


def _tell_of_parts(names: Names, rate: float) -> None:
    from polysem.cli.tables import print_table
    from polysem.report.names import phrases

    if names.facets is not None:
        first = names.facets[names.facets["rank"] == 1]
        several = phrases(names.facets)
        several = several[several["facets"] > 1].sort_values("facets", ascending=False)
        if not several.empty:
            print_table(several.head(15), title="Units that answer to several things")
        print(f"{int(first['named'].sum()):,} of {len(first):,} facets have a fitting name")
    if names.heads is not None:
        first = names.heads[names.heads["rank"] == 1]
        columns = ["layer", "head", "by", "concept", "p_value", "auroc"]
        shown = first[first["named"]].sort_values("auroc", ascending=False)
        if not shown.empty:
            print_table(shown[columns].head(15), title="Named heads")
        print(f"{int(first['named'].sum()):,} of {len(first):,} heads have a fitting name")


def _write(run: Run, names: Names) -> list[Path]:
    """Write tables as CSV and Markdown beside the parquet files, and return all files."""
    from polysem.report.names import labels_markdown
    from polysem.store.tables import save_table, save_text

    folder = run.path / "tables"
    tables = {"labels": names.labels, "facet_labels": names.facets, "head_labels": names.heads}
    files = []
    for stem, table in tables.items():
        if table is not None:
            files.append(folder / f"{stem}.parquet")
            files += save_table(table, folder, stem, endings=(".csv",))
    text = labels_markdown(run, names.labels, names.facets, names.heads)
    return [*files, save_text(text, folder / "labels.md")]


def _draw(run: Run, named: pd.DataFrame, folder: Path, data: str | None) -> None:
    """Draw contact sheets of the units that their names predict best."""
    from polysem.cli.show import seen_by_model
    from polysem.progress import progress_bar
    from polysem.report.figures import contact_sheet
    from polysem.report.page import save

    best = named.drop_duplicates(["site", "unit"]).head(_N_SHEETS)
    images = seen_by_model(run, data)
    with progress_bar(unit="sheets") as move:
        pairs = zip(best["site"], best["unit"], strict=True)
        for done, (site, unit) in enumerate(pairs, start=1):
            figure = contact_sheet(run, site, int(unit), images)
            save(figure, folder / f"{site}-{unit}.png")
            move("draw", done, len(best))
    print(f"wrote {len(best)} contact sheets in {folder}")
