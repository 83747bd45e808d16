"""From run folders to the folder of a site: images, data, pages and what they load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jinja2

from polysem.errors import RunError, SpecError
from polysem.report.exemplars import Images
from polysem.report.site.exemplar_images import described_images, exemplar_images, head_images
from polysem.report.site.extras import Whole, open_extra
from polysem.report.site.kinds import KINDS
from polysem.report.site.markdown import write_markdown
from polysem.report.site.parts import Content, PageKind, Shown, embedded, write_data
from polysem.report.site.sprites import first_seen, write_sprites
from polysem.store.folders import whole_folder
from polysem.store.run import Run

__all__ = ["MARK", "Form", "require_free_site", "write_site"]

Form: TypeAlias = Literal["html", "md", "both"]

#: The file by which a folder is known to be a site that may be replaced.
MARK = "polysem-site.json"

_STATIC = ("style.css", "site.js")


def write_site(
    runs: Sequence[Run],
    images: Sequence[Images],
    out: str | Path,
    *,
    extras: Sequence[Path] = (),
    form: Form = "html",
    n_exemplars: int = 9,
    title: str | None = None,
    on_step: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Path:
    """Write the report of some runs and return its first page.

    The folder appears when it is whole, in place of an older one.

    Parameters
    ----------
    runs : sequence of Run
    images : sequence of callable
        One a run, as for `report.figures.contact_sheet`. An image that is no longer there leaves
        a grey field.
    out : str or Path
    extras : sequence of Path
        Folders of ``polysem compare``, ``evolve`` and ``explain`` that are shown too.
    form : {"html", "md", "both"}, default "html"
        A site, one Markdown file with pictures, or both in one folder.
    n_exemplars : int, default 9
        Exemplars of each tail of a unit.
    title : str, optional
        Of the site; by default the names of the models.
    on_step : callable
        Told what is being done, how far it is, and how far it goes.

    Raises
    ------
    PolysemError
        No run, a run that is damaged, a folder that holds something else, or a full disk.
    """
    if not runs:
        raise SpecError("a report needs at least one run")
    out = Path(out).expanduser()
    with whole_folder(out) as folder:
        keys = _keys([*(run.path for run in runs), *extras])
        more = [open_extra(path, key) for path, key in zip(extras, keys[len(runs) :], strict=True)]
        shown = [
            _with_images(run, key, some, folder, n_exemplars, on_step)
            for run, key, some in zip(runs, keys[: len(runs)], images, strict=True)
        ]
        whole = Whole(shown, more, folder)
        contents = _contents(whole)
        if form != "html":
            write_markdown(whole, contents, images, title or _title(runs))
        if form == "md":
            _leave_out_site_files(whole)
        else:
            _write_pages(whole, contents, title or _title(runs))
        (folder / MARK).write_text(json.dumps({"format": 1, "runs": keys}) + "\n", encoding="utf-8")
    return out / ("README.md" if form == "md" else "index.html")


def require_free_site(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a site may not be written to.

    Raises
    ------
    RunError
        If it is a file, holds something else, or a site that may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise RunError(f"{out} is a file; name a folder for the report")
    if not (out / MARK).is_file():
        raise RunError(f"{out} holds something other than a report; name another folder")
    if not overwrite:
        raise RunError(f"{out} already holds a report; name another folder or use --overwrite")


def _keys(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run that can stand in paths and links; all are different.

    >>> _keys([Path("a/bcos"), Path("b/bcos"), Path("Übung 1")])
    ['bcos', 'bcos-2', 'bung-1']
    """
    found: list[str] = []
    for path in paths:
        name = re.sub(r"[^A-Za-z0-9_]+", "-", path.resolve().name if not path.name else path.name)
        start = name.strip("-")[:40] or "run"
        same = [key for key in found if key == start or key.startswith(f"{start}-")]
        found.append(f"{start}-{len(same) + 1}" if same else start)
    return found


def _title(runs: Sequence[Run]) -> str:
    return " · ".join(dict.fromkeys(str(run.manifest["model"]["name"]) for run in runs))


def _with_images(
    run: Run,
    key: str,
    images: Images,
    folder: Path,
    n_exemplars: int,
    on_step: Callable[[str, int, int], None],
) -> Shown:
    """Write the sprites of a run, and what is said of them."""
    seen = [exemplar_images(run, site, n_exemplars).swapaxes(0, 1) for site in run.sites]
    if (run.path / "gates.zarr").is_dir():
        rows, numbers = head_images(run)[0], run.gates["image"].to_numpy()
        seen.append(numbers[rows[rows >= 0]].astype("int64"))
    wanted = first_seen(seen)
    height, width = run.manifest["model"]["transform"]["size"]
    sprites = write_sprites(
        images, wanted, folder, key, size=(height, width),
        on_image=lambda done, total: on_step(f"images of {key}", done, total),
    )  # fmt: skip
    shown = Shown(run, key, run.path.name or key, folder, sprites, n_exemplars, on_step)
    write_data(shown, "images", described_images(run, sprites, wanted))
    return shown


def _contents(whole: Whole) -> dict[tuple[str, str], Content]:
    """Return what each page says, by its slug and the key of its run (empty: of all runs)."""
    contents: dict[tuple[str, str], Content] = {}
    for kind in KINDS:
        for shown in whole.runs if kind.each else (None,):
            built = kind.build(whole if shown is None else shown)
            contents[kind.slug, "" if shown is None else shown.key] = built
    return contents


def _leave_out_site_files(whole: Whole) -> None:
    """Remove what only the pages of a site load."""
    shutil.rmtree(whole.folder / "data")
    for shown in whole.runs:
        for sheet in shown.sprites.sheets:
            (whole.folder / sheet).unlink()


def _write_pages(whole: Whole, contents: Mapping[tuple[str, str], Content], title: str) -> None:
    """Write every kind of page, each with links to all others."""
    runs, folder = whole.runs, whole.folder
    environment = _environment()
    scripts: set[str] = set()
    for kind in KINDS:
        for shown in runs if kind.each else (None,):
            content = contents[kind.slug, "" if shown is None else shown.key]
            text = environment.get_template(f"{kind.slug}.html").render(
                **content.context,
                content=content,
                kind=kind,
                site_title=title,
                shown=shown,
                runs=runs,
                navigation=_navigation(runs, contents, kind, shown),
                address=lambda slug, key="", runs=runs: _address(slug, key, runs),
            )
            (folder / _address(kind.slug, "" if shown is None else shown.key, runs)).write_text(
                text, encoding="utf-8"
            )
            scripts.update(kind.scripts)
    _write_static(folder, (*_STATIC, *sorted(scripts)))
    if any(content.charts for content in contents.values()):
        _write_plotly(folder)


def _address(slug: str, key: str, runs: Sequence[Shown]) -> str:
    """Return the file of a page: SLUG.html, with the key of the run where there are several."""
    return f"{slug}-{key}.html" if key and len(runs) > 1 else f"{slug}.html"


def _navigation(
    runs: Sequence[Shown],
    contents: Mapping[tuple[str, str], Content],
    here: PageKind,
    shown: Shown | None,
) -> list[dict[str, Any]]:
    """Return the links of the navigation: pages of the run shown, or of the first one."""
    key = (shown or runs[0]).key
    return [
        {
            "title": kind.title,
            "address": _address(kind.slug, key if kind.each else "", runs),
            "current": kind is here,
            "empty": contents[kind.slug, key if kind.each else ""].empty,
        }
        for kind in KINDS
    ]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("polysem.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


def _write_static(folder: Path, names: Sequence[str]) -> None:
    (folder / "assets").mkdir(exist_ok=True)
    for name in names:
        text = files("polysem.report").joinpath("static", name).read_text(encoding="utf-8")
        (folder / "assets" / name).write_text(text, encoding="utf-8")


def _write_plotly(folder: Path) -> None:
    """Copy plotly.js, once for all pages that draw charts."""
    (folder / "assets").mkdir(exist_ok=True)
    source = files("plotly").joinpath("package_data", "plotly.min.js")
    with source.open("rb") as script, (folder / "assets" / "plotly.min.js").open("wb") as copy:
        shutil.copyfileobj(script, copy)
