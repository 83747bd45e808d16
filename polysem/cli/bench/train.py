"""``polysem bench train``: images per second beside the bare network, and the parts of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_train(
    out: Annotated[Path, typer.Option(help="Folder for table.csv and profile.csv.")],
    recipe: Annotated[Path, typer.Option(help="Recipe whose steps are measured.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE in place of the recipe's, as in data.train=PATH."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each loop and repeat.", min=1)] = 20,
    repeats: Annotated[int, typer.Option(help="How often each loop is timed.", min=1)] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Speed of training steps beside the bare forward and backward pass, and where time goes.

    table.csv has a line for the bare network on batches that lie ready, for whole steps on images
    kept in memory, and on images read while training; profile.csv has the parts of a step.

    Example: [bold]polysem bench train --recipe analyses/recipes/cifar10_cpu_vit.yaml --out
    runs/bench_train[/bold]
    """
    from polysem.cli.changes import parse_changes
    from polysem.cli.tables import write_table
    from polysem.train.bench import MEANINGS
    from polysem.train.bench import bench_train as measure
    from polysem.train.recipe import load_recipe

    read = load_recipe(recipe, changes=parse_changes(changes or []))
    table, profile = measure(read, steps=steps, repeats=repeats, device=device, report=print)
    write_table(table, out)
    write_table(profile, out, name="profile")
    for column, meaning in MEANINGS.items():
        print(f"{column}: {meaning}")
