"""The report as Markdown: all that pages say, names that do nothing, pictures that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from site_extras import comparison_folder, evolution_folder, explanation_folder
from site_run import EVIL, bare_run, full_run, picture

from polysem.report.site.markdown import _code
from polysem.report.site.write import MARK, write_site


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    extras = [
        comparison_folder(folder / "compared"),
        evolution_folder(folder / "evolved"),
        explanation_folder(folder / "why"),
    ]
    out = tmp_path_factory.mktemp("web") / "report"
    return write_site([full_run(folder / "a")], [picture], out, extras=extras, form="md")


def rendered(file: Path) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(file.read_text(encoding="utf-8")))


def test_every_part_is_there_and_nothing_that_only_pages_load(report: Path) -> None:
    page = rendered(report)
    for title in ("Neurons", "Heads", "Groups of units", "Methods", "How to do it again"):
        assert f"<h3>{title}</h3>" in page or f"<h2>{title}</h2>" in page, title
    assert {path.name for path in report.parent.iterdir()} == {"README.md", "images", MARK}


def test_pictures_are_there_and_none_too_many(report: Path) -> None:
    shown = set(re.findall(r'<img src="([^"]+)"', rendered(report)))
    there = {
        path.relative_to(report.parent).as_posix()
        for path in report.parent.rglob("images/**/*")
        if path.is_file()
    }
    assert shown and shown <= there
    assert not [path for path in there if "sheet" in path]


def test_names_are_shown_and_not_run(report: Path) -> None:
    page = rendered(report)
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"<(?!/?(?:h\d|p|table|thead|tbody|tr|th|td|img|a|code|pre|ul|li|strong|"
                          r"blockquote|em|details|summary)\b)[a-z/]", page)  # fmt: skip


def test_what_is_missing_names_its_command(tmp_path: Path) -> None:
    page = write_site([bare_run(tmp_path / "b")], [picture], tmp_path / "out", form="md")
    text = page.read_text(encoding="utf-8")
    assert "## Not in this report yet" in text
    for command in ("polysem polysemanticity", "polysem facets", "polysem compare"):
        assert f"`{command} " in text


def test_both_forms_share_a_folder(tmp_path: Path) -> None:
    page = write_site([bare_run(tmp_path / "b")], [picture], tmp_path / "out", form="both")
    assert page.name == "index.html"
    assert (page.parent / "README.md").is_file()
    assert (page.parent / "data").is_dir()


@pytest.mark.parametrize("text", ["polysem x", "a `b` c", "``", "`", "a``` b"])
def test_code_is_shown_as_it_is(text: str) -> None:
    page = MarkdownIt("commonmark").render(_code(text))
    assert f"<code>{text}</code>" in page
