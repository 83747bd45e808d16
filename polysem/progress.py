"""Progress of long work: a bar with items per second and time left, on the terminal's stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    task: str, total: int, *, unit: str = "images", show: bool = True
) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves the bar on by a number of items.

    Nothing is drawn where stderr is not a terminal, or `show` is False.
    """
    if not (show and sys.stderr.isatty()):
        yield lambda _n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task
    from rich.progress import TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        row = progress.add_task(task, total=total)
        yield lambda n: progress.advance(row, n)
