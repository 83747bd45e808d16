"""The folder of a site: what is in it, what is left out with a word, and what it may replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from site_run import EVIL, bare_run, full_run, picture

from polysem.errors import RunError, SpecError
from polysem.report.site.faces import all_faces, missing_tables
from polysem.report.site.kinds import KINDS
from polysem.report.site.parts import embedded, rounded
from polysem.report.site.write import MARK, require_free_site, write_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = full_run(tmp_path_factory.mktemp("runs") / "a run")
    return write_site([run], [picture], tmp_path_factory.mktemp("web") / "site").parent


def given(site: Path, name: str) -> Any:
    text = (site / "data" / "a-run" / f"{name}.js").read_text()
    start = text.index(",") + 1
    return json.loads(text[start:].removesuffix(");\n"))


def test_names_are_escaped_in_pages_and_data(site: Path) -> None:
    for file in [*site.glob("*.html"), *site.rglob("data/**/*.js")]:
        assert EVIL not in file.read_text(), file.name
    assert EVIL in given(site, "atlas")["words"]
    assert json.loads(str(embedded({"name": EVIL})))["name"] == EVIL


def test_the_atlas_has_a_card_for_every_face_in_order(site: Path, tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    faces, atlas = all_faces(run), given(site, "atlas")
    sites = [atlas["sites"][i]["name"] for i in atlas["site"]]
    assert sites == faces["site"].tolist()
    assert atlas["unit"] == faces["unit"].tolist()
    cards = [card for file in sorted(site.glob("data/a-run/units-*.js"))
             for card in given(site, file.stem)]  # fmt: skip
    assert len(cards) == len(faces)
    images = given(site, "images")["image"]
    for at, (name, unit, tail) in enumerate(
        zip(faces["site"], faces["unit"], faces["tail"], strict=True)
    ):
        top = run.units(name).sel(tail=tail).isel(unit=unit)
        count = 0 if faces["dead"][at] else int(top["n_exemplars"])
        wanted = top["top_image"].to_numpy()[:count].astype(int).tolist()
        assert [images[slot] for slot in cards[at]["i"]] == wanted
        if count:
            assert cards[at]["v"] == rounded(top["top_value"].to_numpy()[:count], 3)
            assert sum(cards[at]["h"][2:]) == run.units(name).sizes["sample"]


def test_class_profiles_are_means(site: Path, tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    units = run.units("blocks.0.attn.hook_z").sel(pool="max")
    card = given(site, "units-0000")[0]  # head 0 of the first block, in network order
    first = given(site, "atlas")["sites"][0]["name"]
    units = run.units(first).sel(pool="max").isel(unit=0)
    means = (units["class_sum"] / units["class_count"]).to_numpy()
    assert card["k"] == [[i, mean] for i, mean in enumerate(rounded(means, 3))]


def test_edges_lead_both_ways(site: Path) -> None:
    atlas = given(site, "atlas")
    names = [site["name"] for site in atlas["sites"]]
    rows = {
        (names[s], unit): row
        for row, (s, unit, low) in enumerate(
            zip(atlas["site"], atlas["unit"], atlas["lower"], strict=True)
        )
        if not low
    }
    shard = atlas["shard"]

    def card(name: str, unit: int) -> Any:
        row = rows[name, unit]
        return given(site, f"units-{row // shard:04d}")[row % shard]

    after, before = "blocks.1.mlp.hook_post", "blocks.0.mlp.hook_post"
    assert card(after, 0)["u"] == [[before, 1, "upper", 0.4]]
    assert card(before, 1)["d"] == [[after, 0, "upper", 0.4]]


def test_what_is_missing_is_left_out_with_the_command_that_adds_it(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "bare")
    site = write_site([run], [picture], tmp_path / "site").parent
    assert {f"{kind.slug}.html" for kind in KINDS} == {p.name for p in site.glob("*.html")}
    atlas = (site / "atlas.html").read_text()
    assert missing_tables(run)
    for command in ("polysemanticity", "facets", "clusters", "describe-neurons", "explain"):
        assert f"polysem {command} " in atlas
    assert f"polysem clusters {run.path}" in (site / "map.html").read_text()
    assert "polysem heads --model" in (site / "heads.html").read_text()
    assert not (site / "assets" / "plotly.min.js").exists()  # nothing is drawn with it


def test_images_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    def gone(image: int) -> Any:
        raise LookupError(image)

    site = write_site([bare_run(tmp_path / "run")], [gone], tmp_path / "site").parent
    assert "--data WHERE" in (site / "atlas.html").read_text()
    assert not (site / "images").exists()


def test_several_runs_have_pages_of_their_own(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path / name / "run") for name in "ab"]
    site = write_site(runs, [picture, picture], tmp_path / "site").parent
    assert (site / "atlas-run.html").is_file()
    assert (site / "atlas-run-2.html").is_file()
    assert (site / "index.html").is_file()


def test_only_a_report_is_replaced_and_only_if_asked(tmp_path: Path) -> None:
    place = tmp_path / "site"
    require_free_site(place, overwrite=False)
    place.mkdir()
    require_free_site(place, overwrite=False)
    (place / "mine.txt").write_text("kept")
    with pytest.raises(RunError, match="something other"):
        require_free_site(place, overwrite=True)
    (place / MARK).write_text("{}")
    with pytest.raises(RunError, match="--overwrite"):
        require_free_site(place, overwrite=False)
    require_free_site(place, overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        require_free_site(place / MARK, overwrite=True)


def test_a_site_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    site = write_site([run], [picture], tmp_path / "site").parent
    before = sorted(site.rglob("*"))

    def broken(image: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_site([run], [broken], site)
    assert sorted(site.rglob("*")) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "site"]


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="at least one run"):
        write_site([], [], tmp_path / "site")
