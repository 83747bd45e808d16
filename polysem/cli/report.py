"""``polysem report``: one or more runs as a site that opens from its folder, or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polysem.errors import SpecError

if TYPE_CHECKING:
    from polysem.report.site.write import Form
    from polysem.store.run import Run


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs; also of comparisons, evolutions and explanations.",
            metavar="RUN [RUN …]",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")],
    form: Annotated[
        Literal["html", "md", "both"],
        typer.Option(
            "--format", help="A site (html), one Markdown file with pictures (md), or both."
        ),
    ] = "html",
    data: Annotated[
        list[str] | None,
        typer.Option(help="Where the images are, if they have moved; one for each run."),
    ] = None,
    exemplars: Annotated[
        int, typer.Option(help="Exemplars of each tail of a unit.", min=1, max=32)
    ] = 9,
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the report that is there.")
    ] = False,
) -> None:
    """Write the report of one or more runs: pages that open offline from their folder, or Markdown.

    What a run does not hold yet is left out, with a line that says which command would add it.
    Folders that polysem compare, evolve and explain wrote are shown too if they are named.

    Example: [bold]polysem report runs/a --out report[/bold]
    """
    page = write_report(
        runs, out, form=form, data=data, n_exemplars=exemplars, title=title, overwrite=overwrite
    )
    size = sum(file.stat().st_size for file in page.parent.rglob("*") if file.is_file())
    print(f"wrote {page.parent}, {size / 1e6:,.1f} MB; open {page.absolute().as_uri()}")


def write_report(
    runs: Sequence[Run | str | Path] | Run | str | Path,
    out: str | Path,
    *,
    form: Form = "html",
    data: Sequence[str] | None = None,
    n_exemplars: int = 9,
    title: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write the report of one or more runs, and return its first page.

    Parameters
    ----------
    runs : Run or path, or sequence of them
        Paths may also be folders that ``polysem compare``, ``evolve`` and ``explain`` wrote.
    out : str or Path
        Folder, which appears when it is whole.
    form : {"html", "md", "both"}, default "html"
        A static site, one Markdown file (``README.md``) with pictures, or both.
    data : sequence of str, optional
        Where the images of each run are, if they have moved.
    n_exemplars : int, default 9
        Exemplars of each tail of a unit.
    title : str, optional
        Of the site; by default the names of the models.
    overwrite : bool, default False
        Replace an older report; nothing else is ever replaced.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Raises
    ------
    PolysemError
        No run, a run that is damaged, images that are others than the run's, a folder that holds
        something else, or a full disk.
    """
    from polysem.cli.show import seen_by_model
    from polysem.progress import progress_bar
    from polysem.report.site.extras import kind_of_folder
    from polysem.report.site.write import require_free_site, write_site
    from polysem.store.run import Run

    given = [runs] if isinstance(runs, (Run, str, Path)) else list(runs)
    extras = [Path(one) for one in given if not isinstance(one, Run) and kind_of_folder(Path(one))]
    opened = [
        one if isinstance(one, Run) else Run.open(one)
        for one in given
        if isinstance(one, Run) or Path(one) not in extras
    ]
    if data is not None and len(data) != len(opened):
        raise SpecError(f"{len(data)} --data for {len(opened)} runs: name one for each")
    place = Path(out).expanduser()
    require_free_site(place, overwrite=overwrite)
    where: Sequence[str | None] = data if data is not None else [None] * len(opened)
    images = [seen_by_model(run, spec) for run, spec in zip(opened, where, strict=True)]
    with progress_bar(unit="steps", show=progress) as move:
        return write_site(
            opened,
            images,
            place,
            extras=extras,
            form=form,
            n_exemplars=n_exemplars,
            title=title,
            on_step=move,
        )
