"""``polysem train``: from recipes to models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_BEGUN = ("state.pt", "model.safetensors", "open_clip_model.safetensors")


def train(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes, YAML files.", metavar="RECIPE…")],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the trained model; of several recipes, one below for each."),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted training stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where an earlier training wrote.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE in place of the recipe's, as in data.train=PATH."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train models as recipes say.

    Several recipes are trained one after the other, each into OUT/NAME; with --resume those that
    have finished are passed over and those not yet begun are started.

    Example: [bold]polysem train analyses/recipes/shapes_micro_bcos.yaml --out runs/bcos[/bold]

    On all GPUs: [bold]accelerate launch -m polysem train RECIPE --out DIR[/bold]
    """
    from polysem.cli.changes import parse_changes
    from polysem.errors import RecipeError
    from polysem.train.recipe import load_recipe

    names = [path.stem for path in recipes]
    if len(set(names)) < len(names):
        raise RecipeError("two recipes have the same file name, so they would share a folder")
    new = parse_changes(changes or [])
    loaded = [load_recipe(path, changes=new) for path in recipes]  # all, before any work
    for path, recipe in zip(recipes, loaded, strict=True):
        folder = out / path.stem if len(recipes) > 1 else out
        begun = any((folder / name).exists() for name in _BEGUN)
        flags = "".join(f" --set {change}" for change in changes or [])
        _train(
            recipe,
            out=folder,
            resume=resume and (begun or len(recipes) == 1),
            overwrite=overwrite,
            device=device,
            command=f"polysem train {path} --out {folder}{flags}",
        )


def _train(recipe: Any, **options: Any) -> None:
    from polysem.launch import launched
    from polysem.progress import progress_bar
    from polysem.train.loop import Progress
    from polysem.train.loop import train as run_training

    with progress_bar(unit="steps", show=launched().first) as move:

        def report(progress: Progress) -> None:
            move(progress.stage, progress.done, progress.total)
            if progress.record is not None:
                print(_epoch(dict(progress.record)), flush=True)

        result = run_training(recipe, on_progress=report, **options)
    if launched().first:
        metrics = ", ".join(
            f"{name} {value:.4f}"
            for name, value in result.metrics.items()
            if isinstance(value, float)
        )
        print(f"wrote {result.path}: {metrics}", flush=True)


def _epoch(record: dict[str, object]) -> str:
    parts = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
             for name, value in record.items())  # fmt: skip
    return "  ".join(parts)
