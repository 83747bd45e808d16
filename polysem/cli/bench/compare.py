"""``polysem bench compare``: whether statistics of comparisons are what they say they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_compare(
    out: Annotated[Path, typer.Option(help="Folder for table.csv.")],
    simulations: Annotated[int, typer.Option(help="Comparisons drawn a row.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0)] = 0,
) -> None:
    """Compare arms whose difference is known: rejections at 5 %, power, coverage of intervals.

    Columns: effect (planted Cliff's delta), rejection_rate at level, with a 95 % interval over
    simulations; attainable: the share of rejections that so few networks allow for at that level
    (0 for 3 and 3, whose smallest p is 0.1); coverage of 95 % intervals. Where arms have one
    network, tests and intervals are about these networks: the last row shows that two seeds of
    one arm then differ, which is why no such row speaks of training.

    Example: [bold]polysem bench compare --out runs/bench[/bold]
    """
    from polysem.cli.bench.compare_worlds import simulate
    from polysem.cli.tables import write_table

    write_table(simulate(simulations=simulations, seed=seed, report=print), out)
