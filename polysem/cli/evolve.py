"""``polysem evolve``: how units come to be, from the snapshots of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polysem.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the printed table, if they are there, and what they are called in it.
_SHOWN = {
    "step": "step",
    "accuracy": "accuracy",
    "cka_final": "CKA, final",
    "cka_previous": "CKA, before",
    "correlation": "r, final",
    "matched_correlation": "r, matched",
    "kept_index": "own index",
    "label_churn": "relabelled",
    "born_label": "label born",
    "born_correlation": "born",
    "excess_rank": "excess rank",
    "selectivity": "selectivity",
}


def evolve(
    checkpoints: Annotated[
        list[str],
        typer.Option(help="Glob of snapshots, in quotes; may be given again for more."),
    ],
    data: Annotated[
        str, typer.Option(help="Image folder, parquet, archive, hub:ORG/NAME, or shapes.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the result, with a run for each snapshot.")],
    embed: Annotated[
        str,
        typer.Option(
            help="What embeds images: final (the last snapshot, for all), model (each its own), "
            "timm:NAME, open_clip:ARCH[:PRETRAINED or FILE], or none."
        ),
    ] = "final",
    clip: Annotated[
        str | None,
        typer.Option(help="Name units with this CLIP model, as polysem describe-neurons does."),
    ] = None,
    concepts: Annotated[
        str, typer.Option(help="Names that may be given, as in polysem describe-neurons.")
    ] = "common",
    follow: Annotated[
        Literal["index", "match"],
        typer.Option(help="Which earlier unit is the same: that of the same index, or the match."),
    ] = "index",
    threshold: Annotated[
        float,
        typer.Option(help="Correlation at which a unit counts as its final self.", min=-1, max=1),
    ] = 0.7,
    unit: Annotated[
        list[str] | None,
        typer.Option(help="SITE:UNIT to draw over time; may be given again. Default: some."),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(help="Globs of sites, comma-separated. Default: neurons, heads, pooled."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Exemplars per unit and tail.", min=1)] = 16,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per pass. Default: 64, on a GPU 256.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Arithmetic of the forward pass.")
    ] = "fp32",
    limit: Annotated[
        int | None, typer.Option(help="Take a random sample of so many images.", min=1)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.", min=0)] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm name of a bare state dict's architecture.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at an image that cannot be read.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier call stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier result.")
    ] = False,
) -> None:
    """Follow every unit through the snapshots of a training: scores, labels, births, churn.

    Images are read and embedded once. Each snapshot becomes a run, OUT/step_N, for all other
    commands; OUT/tables and OUT/pictures tell how units came to be.

    Example: [bold]polysem evolve --checkpoints 'a/snapshots/*' --data photos/ --out runs/e[/bold]
    """
    from polysem.evolution import evolve as follow_units

    units = [_unit(each) for each in unit or []]
    evolution = follow_units(
        checkpoints,
        data,
        out=out,
        embed=None if embed == "none" else embed,
        clip=clip,
        concepts=concepts,
        follow=follow,
        threshold=threshold,
        units=units,
        sites=sites,
        top_k=top_k,
        batch_size=batch_size,
        device=device,
        precision=precision,
        limit=limit,
        workers=workers,
        arch=arch,
        strict=strict,
        resume=resume,
        overwrite=overwrite,
    )
    if evolution.manifest["status"] != "complete":
        print(f"interrupted; finished snapshots are kept in {out}; go on with --resume")
        raise typer.Exit(130)
    _print(evolution.table("layers"))
    for note in evolution.manifest["notes"]:
        print(f"note: {note}")
    print(f"wrote {out}: a run for each of {len(evolution.steps)} snapshots, tables and pictures")


def _unit(text: str) -> tuple[str, int]:
    site, _, unit = text.rpartition(":")
    if not (site and unit.isdecimal()):
        raise SpecError(f"--unit {text!r} should be a site and a unit, such as hook_pooled:3")
    return site, int(unit)


def _print(layers: pd.DataFrame) -> None:
    """Print one table a site: a row for each snapshot."""
    from polysem.cli.tables import print_table

    shown = {name: said for name, said in _SHOWN.items() if layers[name].notna().any()}
    for site, table in layers.groupby("site", sort=False):
        title = f"{site}: {table['units'].iloc[0]:,} units"
        print_table(table[list(shown)].rename(columns=shown), title=title)
