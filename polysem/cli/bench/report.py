"""``polysem bench report``: how large the site of many units is, and how fast it opens."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

#: Pixels of a side of what is cut out: as many as a thumbnail has at most.
_SIDE = 96


def bench_report(
    out: Annotated[Path, typer.Option(help="Folder for table.csv and the site.")],
    units: Annotated[int, typer.Option(help="Units, drawn at random.", min=12)] = 10_000,
    images: Annotated[int, typer.Option(help="Images that they choose from.", min=256)] = 50_000,
    data: Annotated[
        str, typer.Option(help="Pictures that images are cut out of.")
    ] = "shapes:test?n=300&size=224",
) -> None:
    """Write the site of a run of random units; its size, and how fast its pages open.

    Exemplars are drawn from all images alike, so that hardly one is shared: the hardest case. The
    time to open is that of headless Chromium where playwright and a browser are installed.

    Example: [bold]polysem bench report --out runs/bench[/bold]
    """
    from polysem.cli.bench.synthetic_run import synthetic_run
    from polysem.cli.tables import print_table
    from polysem.report.site.write import write_site
    from polysem.store.tables import save_table

    with tempfile.TemporaryDirectory() as scratch:
        run = synthetic_run(Path(scratch) / "run", n_units=units, n_images=images)
        print(f"drew a run of {units:,} units; writing its site …")
        start = time.process_time()
        first = write_site([run], [_cut_out(data)], out / "site")
        seconds = time.process_time() - start
    table = measure_site(first.parent, cpu_seconds=seconds)
    save_table(table, out, "table", endings=(".csv",))
    print_table(table, title=f"The site of {units:,} units with 9 exemplars each")
    print(f"wrote {out / 'table.csv'}; look at {first}")


def measure_site(site: Path, *, cpu_seconds: float) -> pd.DataFrame:
    """Return size, files and writing time of a site, and how fast its pages open if known."""
    import pandas as pd

    files = [file for file in site.rglob("*") if file.is_file()]
    rows: list[tuple[str, float, str]] = [
        ("whole site", sum(file.stat().st_size for file in files) / 1e6, "MB"),
        ("images", _size(site / "images") / 1e6, "MB"),
        ("data", _size(site / "data") / 1e6, "MB"),
        ("files", float(len(files)), ""),
        ("writing, CPU time", cpu_seconds, "s"),
    ]
    rows += [(what, value, unit) for what, value, unit in _opened(site)]
    return pd.DataFrame(rows, columns=["what", "value", "unit"])


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _opened(site: Path) -> list[tuple[str, float, str]]:
    """Return what the browser loads and how long it takes, page by page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        print("note: no playwright or no Chromium here, so that no page was opened")
        return []
    rows: list[tuple[str, float, str]] = []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=browser,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for page in ("index", "atlas", "map"):
            rows += _one_page(opened, site, page)
        opened.close()
    return rows


def _one_page(browser: Any, site: Path, name: str) -> list[tuple[str, float, str]]:
    loaded: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.on("request", lambda request: loaded.append(request.url))
    start = time.perf_counter()
    page.goto((site.absolute() / f"{name}.html").as_uri())
    if name == "atlas":
        page.wait_for_selector("#cards li:first-child canvas")
    if name == "map":
        page.wait_for_function("document.documentElement.dataset.ready === 'map'", timeout=120_000)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    seconds = time.perf_counter() - start
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    page.wait_for_timeout(500)
    files = {site.absolute() / url.split("/site/", 1)[1].split("#")[0] for url in loaded
             if "/site/" in url}  # fmt: skip
    context.close()
    size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    return [
        (f"{name} page with all that it loads", size, "MB"),
        (f"{name} page, first paint", (paint or float("nan")) / 1000, "s"),
        (f"{name} page, first view whole", seconds, "s"),
    ]


def _cut_out(data: str) -> Callable[[int], Image.Image]:
    """Return a function that cuts two thirds out of pictures, another part for each index."""
    import numpy as np

    from polysem.data.sources import load_data

    source = load_data(data)

    @lru_cache(maxsize=500)
    def read(number: int) -> Image.Image:
        picture = source.read(number).convert("RGB")
        scale = 1.5 * _SIDE / min(picture.size)
        return picture.resize((round(picture.width * scale), round(picture.height * scale)))

    def cut(index: int) -> Image.Image:
        rng = np.random.default_rng(index)
        picture = read(index % min(500, len(source)))
        left = int(rng.integers(picture.width - _SIDE + 1))
        top = int(rng.integers(picture.height - _SIDE + 1))
        return picture.crop((left, top, left + _SIDE, top + _SIDE))

    return cut
