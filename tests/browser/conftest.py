"""A browser without a window, and a site of a run whose names would run as code if let."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from site_extras import comparison_folder, evolution_folder, explanation_folder
from site_run import full_run, picture

from polysem.report.site.write import write_site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a site of two runs, in a subfolder with a blank in its name."""
    runs = [full_run(tmp_path_factory.mktemp("runs") / name) for name in ("one", "two")]
    place = tmp_path_factory.mktemp("web") / "sub folder" / "site"
    folder = tmp_path_factory.mktemp("extras")
    extras = [
        comparison_folder(folder / "cmp"),
        evolution_folder(folder / "evo"),
        explanation_folder(folder / "why"),
    ]
    return write_site(runs, [picture, picture], place, extras=extras).parent


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield opened
        opened.close()


@pytest.fixture
def visit(site: Path, browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a page; errors and outside requests fail the test."""
    wrong: list[str] = []
    contexts = []

    def heard(message: Any) -> None:
        # software rendering says that it is slow
        if message.type in ("error", "warning") and "GL Driver Message" not in message.text:
            wrong.append(f"console: {message.text}")

    def asked(request: Any) -> None:
        if not request.url.startswith((site.as_uri(), "data:", "blob:")):
            wrong.append(f"outside request: {request.url}")

    def open_page(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", asked)
        page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
        page.goto(f"{site.as_uri()}/{address}")
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            if page.evaluate("window.hurt"):
                wrong.append("a name of the data ran as code")
        context.close()
    assert not wrong
