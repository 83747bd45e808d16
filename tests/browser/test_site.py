"""The site in a browser, opened from its folder: pages, search, sorting, filters, links, themes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from site_run import EVIL

from polysem.report.site.kinds import KINDS

Visit = Callable[..., Any]

PAGES = [f"{kind.slug}-one.html" if kind.each else f"{kind.slug}.html" for kind in KINDS]

LOOK = Path(__file__).with_name("look.js").read_text()


def look(page: Any, name: str, argument: Any = None) -> Any:
    """Evaluate a function of look.js."""
    return page.evaluate(f"(argument) => {LOOK.strip()}.{name}(argument)", argument)


def ready(page: Any, name: str) -> Any:
    page.wait_for_function(f"document.documentElement.dataset.ready === '{name}'")
    return page


def titles(page: Any) -> list[str]:
    found: list[str] = page.locator("#cards h2").all_text_contents()
    return found


@pytest.mark.parametrize("address", PAGES)
def test_every_page_is_whole_legible_and_named(visit: Visit, site: Path, address: str) -> None:
    page = visit(address, color_scheme="light")
    page.wait_for_timeout(200)
    assert page.locator("h1:visible").count() == 1
    assert look(page, "nameless") == []
    links = look(page, "links")
    here = [link for link in links if not link.startswith("https://")]
    assert here
    assert [link for link in here if not (site / link).is_file()] == []
    levels = look(page, "headings")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert look(page, "faint") == [], scheme
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_names_of_the_data_are_shown_and_never_run(visit: Visit) -> None:
    page = ready(visit("atlas-one.html#sort="), "atlas")
    assert EVIL in titles(page)
    page.locator("#cards h2", has_text=EVIL).first.click()
    page.wait_for_selector("#unit h1")
    assert page.locator("#unit h1").text_content() == EVIL
    assert page.locator("#unit script, #unit img").count() == 0


def test_the_atlas_is_searched_by_name_site_and_number(visit: Visit) -> None:
    page = ready(visit("atlas-one.html#sort="), "atlas")
    page.fill("#q", "THING 2")
    page.wait_for_function("document.querySelectorAll('#cards li').length < 15")
    assert "thing 2" in titles(page)
    page.fill("#q", "pooled 3")
    page.wait_for_function("location.hash.includes('pooled')")
    assert look(page, "places")
    assert all("hook_pooled" in place for place in look(page, "places"))
    assert any("unit 3" in place for place in look(page, "places"))
    page.fill("#q", "nothing like it")
    page.wait_for_function("document.querySelectorAll('#cards li').length === 0")
    assert "No unit" in page.locator("#count").text_content()


@pytest.mark.parametrize("score", ["excess_rank", "kurtosis", "facets"])
def test_the_atlas_sorts_by_scores_in_either_order(visit: Visit, score: str) -> None:
    page = ready(visit("atlas-one.html"), "atlas")
    for order in ("up", "down"):
        page.select_option("#sort", score)
        page.select_option("#order", order)
        page.wait_for_timeout(50)
        shown = look(page, "rows", f"a.values.{score}[r]")
        known = [value for value in shown if value is not None]
        assert len(known) > 10
        assert known == sorted(known, reverse=order == "down")
        assert shown[: len(known)] == known  # what is missing comes last


FILTERS = {
    ("site", "part:attn.hook_z"): "a.sites[a.site[r]].part === 'attn.hook_z'",
    ("site", "layer:1"): "a.sites[a.site[r]].layer === 1",
    ("site", "site:hook_pooled"): "a.sites[a.site[r]].name === 'hook_pooled'",
    ("cluster", "1"): "a.cluster[r] === 1",
    ("cluster", "-1"): "a.cluster[r] === -1",
    ("sure", "named"): "a.name[r] >= 0",
    ("sure", "unnamed"): "a.name[r] < 0",
    ("sure", "facets"): "a.values.facets[r] > 1",
    ("dead", "only"): "a.dead[r] === 1",
    ("tail", "lower"): "a.lower[r] === 1",
}


def test_the_atlas_is_filtered(visit: Visit) -> None:
    page = ready(visit("atlas-one.html"), "atlas")
    usual = len(look(page, "rows", "true"))
    for (control, value), holds in FILTERS.items():
        page.select_option(f"#{control}", value)
        page.wait_for_timeout(50)
        shown = look(page, "rows", holds)
        assert shown, value
        assert all(shown), value
        page.select_option(f"#{control}", "")
        page.wait_for_timeout(50)
    assert len(look(page, "rows", "true")) == usual


def test_pages_of_the_atlas_are_turned_and_kept_in_the_address(visit: Visit) -> None:
    page = ready(visit("atlas-one.html#dead=all"), "atlas")
    first = titles(page)
    page.get_by_role("button", name="Next page").click()
    assert titles(page) != first
    assert "page=2" in page.url
    page.reload()
    ready(page, "atlas")
    assert "2 of 2" in page.locator("#pager").text_content()


def test_a_card_shows_exemplars_and_leads_on(visit: Visit) -> None:
    page = ready(visit("atlas-one.html#/blocks.1.mlp.hook_post/0/upper"), "atlas")
    page.wait_for_selector("#unit .exemplars canvas")
    assert page.locator("#unit .exemplars canvas.gone").count() == 0
    for heading in ("Distribution", "Classes", "Scores", "Fed by"):
        assert page.locator("#unit h3", has_text=heading).count() == 1
    page.select_option("#unit-view", "contribution")
    page.locator("#unit .neighbours a").first.click()
    page.wait_for_function("location.hash.includes('blocks.0.mlp.hook_post/1/')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#list:not([hidden])")


def test_units_are_opened_and_followed_by_keyboard(visit: Visit) -> None:
    page = ready(visit("atlas-one.html"), "atlas")
    page.locator("#cards a").first.press("Enter")
    page.wait_for_selector("#unit h1:focus")
    before = page.url
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"location.href !== '{before}'")
    page.wait_for_selector("#unit a[rel=prev]")  # the first unit has none: this is the second
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"location.href === '{before}'")


def test_the_map_shows_names_and_exemplars_and_is_searched(visit: Visit) -> None:
    page = ready(visit("map-one.html"), "map")
    x, y = look(page, "dot")
    page.mouse.move(x + 30, y + 30)
    page.mouse.move(x, y)
    page.wait_for_selector("#hover:not([hidden]) canvas")
    assert EVIL in page.locator("#hover").text_content()
    page.select_option("#colour", "excess_rank")
    page.fill("#q", "thing 2")
    page.wait_for_function("document.getElementById('found').textContent.includes('found')")


def test_heads_are_sorted_drawn_and_each_has_a_page(visit: Visit) -> None:
    page = ready(visit("heads-one.html"), "heads")
    page.locator("#heads thead button").nth(1).click()
    assert page.locator("#heads th[aria-sort=descending]").count() == 1
    gains = look(page, "gains")
    assert [gains[name] for name in look(page, "heads")] == sorted(gains.values(), reverse=True)
    for chart in page.locator("[data-chart]").all():
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
    page.wait_for_function(f"() => !{LOOK.strip()}.undrawn()")
    page.locator("#heads a").first.click()
    page.wait_for_selector("#head h1")
    assert page.locator("#head .exemplars canvas").count() > 0


@pytest.mark.parametrize("name", ["comparison", "evolution"])
def test_charts_of_other_folders_are_drawn(visit: Visit, name: str) -> None:
    page = visit(f"{name}.html")
    for chart in page.locator("[data-chart]").all():
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
    page.wait_for_function(f"() => !{LOOK.strip()}.undrawn()")


def test_the_theme_is_chosen_and_kept(visit: Visit) -> None:
    page = visit("index.html", color_scheme="light")
    light = look(page, "ground")
    page.click("#theme")
    dark = look(page, "ground")
    assert dark != light
    page.get_by_role("link", name="Neurons", exact=True).click()
    ready(page, "atlas")
    assert look(page, "ground") == dark
