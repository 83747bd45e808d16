"""Progress of long work: a bar with speed and time left, on the terminal's stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    *, unit: str = "images", show: bool = True
) -> Iterator[Callable[[str, int, int], None]]:
    """Yield ``move(task, done, total)``, which draws how far a task has come.

    One bar at a time: another task, or one that starts anew, takes the bar over. Nothing is drawn
    where stderr is not a terminal, or `show` is False.
    """
    if not (show and sys.stderr.isatty()):
        yield lambda _task, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
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
        row = progress.add_task("", total=None)
        current = ""

        def move(task: str, done: int, total: int) -> None:
            nonlocal current
            if task != current:
                progress.reset(row, description=task, total=total)
                current = task
            progress.update(row, completed=done)

        yield move
