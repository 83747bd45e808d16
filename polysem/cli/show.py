"""``polysem show``: from a run to a summary, or to pictures of its units."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polysem.errors import PolysemError, SpecError

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from polysem.store.run import Run


def show(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    site: Annotated[str | None, typer.Option(help="Draw units of this site.")] = None,
    unit: Annotated[
        int | None, typer.Option(help="Draw this unit. Default: the site's most peaked ones.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Draw this head, LAYER.HEAD, where it was studied.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Picture (.png, .pdf, .svg) or folder. Default: this folder."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the images are, if they have moved.")
    ] = None,
    exemplars: Annotated[int, typer.Option(help="Exemplars drawn per tail.", min=1)] = 16,
) -> None:
    """Print what a run holds, or draw a unit: exemplars, distribution, classes, statistics.

    With a site alone, draw its twelve units of highest kurtosis; with neither, print a summary,
    and with --out draw an overview of all sites and heads.

    Example: [bold]polysem show runs/a --site blocks.3.mlp.hook_post --unit 17[/bold]
    """
    from polysem.store.run import Run

    opened = Run.open(run)
    if head is not None:
        print(f"wrote {write_head_sheet(opened, head, out, data=data)}")
        return
    if site is None and unit is not None:
        raise SpecError(
            f"--unit {unit} needs a --site; this run has {', '.join(opened.sites[:3])}"
            f"{', …' if len(opened.sites) > 3 else ''}"
        )
    if site is None:
        print_summary(opened)
        if out is not None:
            print(f"wrote {write_overview(opened, out)}")
    elif unit is None:
        print(f"wrote {write_site_sheet(opened, site, out, data=data)}")
    else:
        print(f"wrote {write_sheet(opened, site, unit, out, data=data, n_exemplars=exemplars)}")


def write_sheet(
    run: Run,
    site: str,
    unit: int,
    out: Path | None = None,
    *,
    data: str | None = None,
    n_exemplars: int = 16,
) -> Path:
    """Draw the contact sheet of a unit into a file or folder, and return the file."""
    from polysem.report.figures import contact_sheet
    from polysem.report.page import save
    from polysem.report.unit import open_unit

    place = _place(out, f"{site}-{unit}.png")
    open_unit(run, site, unit)  # a wrong name should not cost a search for images
    figure = contact_sheet(run, site, unit, seen_by_model(run, data), n_exemplars=n_exemplars)
    return save(figure, place)


def write_site_sheet(
    run: Run, site: str, out: Path | None = None, *, data: str | None = None
) -> Path:
    """Draw the most peaked units of a site into a file or folder, and return the file."""
    from polysem.report.page import save
    from polysem.report.site_sheet import site_sheet

    place = _place(out, f"{site}.png")
    run.units(site)
    return save(site_sheet(run, site, seen_by_model(run, data)), place)


def write_head_sheet(
    run: Run, head: str, out: Path | None = None, *, data: str | None = None
) -> Path:
    """Draw the images for which a head matters into a file or folder, and return the file.

    Raises
    ------
    SpecError
        If `head` is not LAYER.HEAD, or there is no such head.
    """
    from polysem.report.head_sheet import head_sheet
    from polysem.report.page import save

    layer, _, number = head.partition(".")
    if not (layer.isdecimal() and number.isdecimal()):
        raise SpecError(f"--head {head!r} should be a layer and a head, such as 3.1")
    place = _place(out, f"head-{head}.png")
    return save(head_sheet(run, int(layer), int(number), seen_by_model(run, data)), place)


def write_overview(run: Run, out: Path) -> Path:
    """Draw the overview of a run into a file or folder, and return the file."""
    from polysem.report.overview import run_overview
    from polysem.report.page import save

    return save(run_overview(run), _place(out, "overview.png"))


def _place(out: Path | None, name: str) -> Path:
    from polysem.report.page import check_suffix

    out = Path(name) if out is None else out.expanduser()
    return check_suffix(out / name if out.is_dir() or not out.suffix else out)


def seen_by_model(run: Run, data: str | None = None) -> Callable[[int], Image.Image]:
    """Return a function from the index of an image to the pixels that the model saw of it.

    Images that are gone, or are no longer the same, are never shown: without `data` a warning
    says so and the function raises LookupError for every image.

    Parameters
    ----------
    run : Run
        The run.
    data : str, optional
        Spec of the images; by default the one that the run was probed with.

    Raises
    ------
    PolysemError
        If `data` is given and cannot be loaded, or does not hold the images of the run.
    """
    import PIL.Image

    from polysem.data.again import load_again
    from polysem.models.transform import Transform

    transform = Transform.from_dict(run.manifest["model"]["transform"])
    try:
        source = load_again(run.manifest["data"], data)
    except PolysemError as error:
        if data is not None:
            raise
        print(
            f"polysem: the images cannot be shown: {error}; say where they are with --data",
            file=sys.stderr,
        )
        return _not_there

    @lru_cache(maxsize=256)
    def seen(image: int) -> Image.Image:
        pixels = transform(source.read(image))
        return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    return seen


def _not_there(image: int) -> Image.Image:
    raise LookupError(image)


def print_summary(run: Run) -> None:
    """Print what a run holds: model, data, what went wrong, and a table of its sites."""
    from polysem.cli.tables import print_table

    print(f"{run.path}: {run.manifest['model']['name']}")
    for name, text in _facts(run):
        print(f"  {name:<9} {text}")
    print_table(_site_table(run))
    print(f"draw a unit: polysem show {run.path} --site {run.sites[0]} --unit 0")


def _facts(run: Run) -> list[tuple[str, str]]:
    facts, model, data = run.manifest, run.manifest["model"], run.manifest["data"]
    height, width = model["transform"]["size"]
    n_images, skipped = facts["n_images"], facts["skipped"]
    classes = f", {len(data['classes']):,} classes" if data["classes"] else ""
    done = f"{n_images:,} images in {facts['seconds']:.1f} s"
    if facts["status"] != "complete":
        done = f"{facts['status']} after {n_images:,} of {data['n_images']:,} images"
    lines = [
        ("model", f"{model['spec']}, weights {model['sha256'][:12]}, {width} × {height} px"),
        ("data", f"{data['name']}{classes if data['labelled'] else ', no labels'}"),
        ("probed", done),
    ]
    correct = run.images["correct"].dropna().astype(bool)
    if len(correct):
        share = 100 * correct.mean()
        lines.append(("accuracy", f"{share:.2f} % ({correct.sum():,} of {len(correct):,})"))
    if skipped:
        first = f"{skipped[0]['key']!r} ({skipped[0]['reason']})"
        rest = "" if len(skipped) == 1 else f", and others; all are in {run.path / 'manifest.json'}"
        lines.append(("left out", f"{len(skipped):,} that cannot be read: {first}{rest}"))
    return [*lines, *(("note", note) for note in facts["notes"])]


def _site_table(run: Run) -> pd.DataFrame:
    import pandas as pd

    units = run.table("units").groupby("site", sort=False)
    dead, medians = units["dead"].sum(), units[["kurtosis", "sparsity"]].median()
    rows = [
        {
            "site": site,
            "units": facts["n_units"],
            "dead": int(dead[site]),
            "tails": "both" if len(facts["tails"]) > 1 else "upper",
            "kurtosis": float(medians.loc[site, "kurtosis"]),
            "sparsity": float(medians.loc[site, "sparsity"]),
        }
        for site, facts in run.manifest["sites"].items()
    ]
    return pd.DataFrame(rows)
