"""``polysem compare``: arms of networks against each other, by every table their runs share."""

from __future__ import annotations

import glob as globbing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polysem.errors import MissingError, SpecError

if TYPE_CHECKING:
    from polysem.analysis.comparison import Comparison

#: What is written.
FILES = (
    "comparison.parquet", "comparison.csv", "layers.parquet", "layers.csv", "forest.png",
    "dropped.png", "comparison.md", "comparison.json",
)  # fmt: skip

#: The most lines printed.
_PRINTED = 40


def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Runs, an arm each, called like their folders.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            help="An arm of several seeds: NAME=RUN,RUN… or NAME=GLOB; repeat for each arm.",
        ),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(help="Globs of sites, comma-separated. Default: all, the same in all runs."),
    ] = None,
    tables: Annotated[
        str | None, typer.Option(help="Tables, comma-separated. Default: all that all runs have.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for tables, forest plot and comparison.md.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an older comparison there.")
    ] = False,
) -> None:
    """Compare networks, or arms of several seeds, by every table that their runs have.

    Effect sizes with intervals over seed, layer and unit, permutation tests and false discovery
    rates. An arm of one seed is compared as the network that it is.

    Example: [bold]polysem compare --group bcos=runs/b1,runs/b2,runs/b3 --group 'vit=runs/v*'
    --out runs/compared[/bold]
    """
    from polysem.analysis.comparison import compare_runs
    from polysem.cli.outputs import require_free
    from polysem.cli.tables import print_table
    from polysem.report.comparison_page import short_table

    arms = arms_of(runs or [], group or [])
    if out is not None:
        require_free(out, FILES, overwrite=overwrite)
    chosen = None if tables is None else [name.strip() for name in tables.split(",")]
    found = compare_runs(arms, sites=sites, tables=chosen)
    for note in found.notes:
        print(f"note: {note}")
    order = found.table["q"].fillna(1).sort_values(kind="stable").index
    title = f"{len(order)} measures, those first that differ most surely"
    print_table(short_table(found.table.loc[order[:_PRINTED]]), title=title)
    if out is None:
        print("all measures, layers and a forest plot: name a folder with --out")
        return
    write_comparison(found, out)
    print(f"wrote comparison.md, forest.png and tables in {out}")


def arms_of(runs: list[Path], groups: list[str]) -> dict[str, list[Path]]:
    """Return the runs of each arm by its name: each run by itself, then the groups.

    Raises
    ------
    SpecError
        If a group is not of the form NAME=RUN, or a name is given twice.
    MissingError
        If a glob matches nothing.
    """
    arms: dict[str, list[Path]] = {}

    def add(name: str, its: list[Path]) -> None:
        if name in arms:
            raise SpecError(
                f"two arms are called {name!r}; name runs with --group NAME=RUN, or make them one "
                "arm with --group NAME=RUN,RUN"
            )
        arms[name] = its

    for run in runs:
        add(run.resolve().name, [run])
    for group in groups:
        name, equals, given = group.partition("=")
        words = [word.strip() for word in given.split(",") if word.strip()]
        if not (name.strip() and equals and words):
            raise SpecError(
                f"--group {group} has to be NAME=RUN,RUN…, such as bcos=runs/b1,runs/b2"
            )
        add(name.strip(), [path for word in words for path in _paths(word)])
    return arms


def _paths(word: str) -> list[Path]:
    if Path(word).exists() or not any(c in word for c in "*?["):
        return [Path(word)]
    hits = sorted(Path(hit) for hit in globbing.glob(word))
    if not hits:
        raise MissingError(f"no run folder matches {word}")
    return hits


def write_comparison(found: Comparison, out: Path) -> None:
    """Write tables, picture and Markdown of a comparison into a folder.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    import json

    from polysem.report.comparison_page import comparison_markdown
    from polysem.report.forest import forest
    from polysem.report.head_curves import drop_curves
    from polysem.report.page import save
    from polysem.store.tables import save_table, save_text

    save_table(found.table, out, "comparison")
    save_table(found.layers, out, "layers")
    save(forest(found.table), out / "forest.png")
    curves = {
        f"{name} {k + 1}" if len(runs) > 1 else name: run
        for name, runs in found.arms.items()
        for k, run in enumerate(runs)
    }
    pictures = ["forest.png"]
    (out / "dropped.png").unlink(missing_ok=True)  # of an older comparison
    if "head_network" in set(found.table["table"]):
        save(drop_curves(curves), out / "dropped.png")
        pictures.append("dropped.png")
    page = comparison_markdown(found.table, found.arms, found.notes, pictures=pictures)
    save_text(page, out / "comparison.md")
    arms = {
        name: [
            {
                "path": str(run.path),
                "model": run.manifest["model"]["name"],
                "sha256": run.manifest["model"]["sha256"],
            }
            for run in runs
        ]
        for name, runs in found.arms.items()
    }
    data = next(iter(found.arms.values()))[0].manifest["data"]
    said = {"arms": arms, "data": data, "notes": found.notes}
    save_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", out / "comparison.json")
