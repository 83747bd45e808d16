"""Names in words: phrases of facets, lines of contact sheets, Markdown that cannot be broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from drawn_run import PlainSource, random_activations, write_run
from written import check_legible

from polysem.report.figures import contact_sheet
from polysem.report.names import facet_phrase, labels_markdown, name_line, phrases
from polysem.store.run import Run

MLP = "blocks.0.mlp.hook_post"
EVIDENCE = {"score": 1.0, "p_value": 0.001, "q_value": 0.01, "auroc": 0.93, "n_exemplars": 16,
            "rank_correlation": 0.4, "seen": "crops", "method": "soft-wpmi"}  # fmt: skip


def labels() -> pd.DataFrame:
    rows = [
        (4, "upper", 1, "red | <b>circle</b>", True),
        (4, "upper", 2, "star", True),
        (4, "lower", 1, "blue", False),
        (1, "upper", 1, "grass", True),
    ]
    table = pd.DataFrame(rows, columns=["unit", "tail", "rank", "concept", "named"])
    return table.assign(site=MLP, **EVIDENCE)


def facet_labels() -> pd.DataFrame:
    rows = [
        (0, 0.5, "red circle", True),
        (1, 0.31, "striped ground", True),
        (2, 0.12, "red circle", True),
        (3, 0.07, "star", False),
    ]
    table = pd.DataFrame(rows, columns=["facet", "share", "concept", "named"])
    return table.assign(site=MLP, unit=4, tail="upper", rank=1, **EVIDENCE)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    source = PlainSource("photos", [f"{i}.png" for i in range(13)])
    return write_run(tmp_path / "a", source, random_activations(13))


def write(run: Run, **tables: pd.DataFrame) -> None:
    for name, table in tables.items():
        table.to_parquet(run.path / "tables" / f"{name}.parquet")


def test_facets_of_one_name_are_one_and_shares_add_up() -> None:
    (row,) = phrases(facet_labels()).itertuples()
    assert (row.site, row.unit, row.tail, row.facets) == (MLP, 4, "upper", 3)
    assert row.names == "red circle 62 % · striped ground 31 % · no fitting name 7 %"


def test_lines_say_name_and_evidence_or_that_none_fits(run: Run) -> None:
    assert name_line(run, MLP, 4, "upper") is None
    assert facet_phrase(run, MLP, 4, "upper") is None
    write(run, labels=labels(), facet_labels=facet_labels())
    line = name_line(run, MLP, 4, "upper")
    assert line == (
        "“red | <b>circle</b>” (p 0.0010, q 0.010, by 16 crops; AUROC 0.93 on other images); "
        "then star"
    )
    assert (name_line(run, MLP, 4, "lower") or "").startswith("no fitting name; nearest is “blue”")
    assert name_line(run, MLP, 2, "upper") is None
    assert (facet_phrase(run, MLP, 4, "upper") or "").startswith("red circle 62 %")


def test_the_contact_sheet_says_them(run: Run) -> None:
    def grey(image: int) -> PIL.Image.Image:
        return PIL.Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8))

    write(run, labels=labels(), facet_labels=facet_labels())
    said = check_legible(contact_sheet(run, MLP, 4, grey, n_exemplars=3))
    assert any(text.startswith("Called “red | <b>circle</b>”") for text in said)
    assert "Facets: red circle 62 % · striped ground 31 % · no fitting name 7 %" in said


def test_markdown_is_escaped_and_has_all(run: Run) -> None:
    heads = pd.DataFrame({"layer": [0], "head": [2], "by": ["norm"], "rank": [1],
                          "concept": ["*sky*"], "named": [True], **EVIDENCE})  # fmt: skip
    text = labels_markdown(run, labels(), facet_labels(), heads)
    assert "<b>" not in text
    assert r"red \| &lt;b&gt;circle&lt;/b&gt;" in text
    assert "2 of 3 have a fitting name." in text
    assert r"\*sky\*" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    row = next(line for line in tables if "unit 1" in line)
    assert row.replace(r"\|", "").count("|") == tables[0].count("|")
