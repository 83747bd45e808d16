"""``polysem train``: from a recipe to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder of the trained model.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted training stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where an earlier training wrote.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train a model as a recipe says.

    Example: [bold]polysem train analyses/recipes/shapes_micro_bcos.yaml --out runs/bcos[/bold]
    """
    from polysem.progress import progress_bar
    from polysem.train.loop import Progress
    from polysem.train.loop import train as run_training
    from polysem.train.recipe import load_recipe

    with progress_bar(unit="steps") as move:

        def report(progress: Progress) -> None:
            move(progress.stage, progress.done, progress.total)
            if progress.record is not None:
                print(_epoch(dict(progress.record)), flush=True)

        result = run_training(
            load_recipe(recipe),
            out=out,
            resume=resume,
            overwrite=overwrite,
            device=device,
            command=f"polysem train {recipe} --out {out}",
            on_progress=report,
        )
    metrics = ", ".join(
        f"{name} {value:.4f}" for name, value in result.metrics.items() if isinstance(value, float)
    )
    print(f"wrote {result.path}: {metrics}")


def _epoch(record: dict[str, object]) -> str:
    parts = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
             for name, value in record.items())  # fmt: skip
    return "  ".join(parts)
