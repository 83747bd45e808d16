"""Answers are what the intervals say: each way of speaking, and how they add up."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from answer import (
    Evidence,
    Finding,
    answer,
    evidence_table,
    findings,
    speaks,
    verdict,
    what_would_change,
    write_answer,
)

from polysem.errors import RunError

HEADLINE = Evidence("polysemanticity", "excess_rank", "blocks.*.mlp.hook_post", "lower", "things")
OTHER = Evidence("images", "loss", "", "higher", "loss")
NAN = math.nan


def row(
    delta: tuple[float, float, float] = (NAN, NAN, NAN),
    difference: tuple[float, float, float] = (0.0, NAN, NAN),
    **more: Any,
) -> dict[str, Any]:
    found = dict(zip(("delta", "delta_low", "delta_high"), delta, strict=True))
    found |= zip(("difference", "difference_low", "difference_high"), difference, strict=True)
    return {
        "arm": "a", "other": "b", "value": 1.0, "value_low": 0.9, "value_high": 1.1,
        "other_value": 2.0, "other_value_low": 1.9, "other_value_high": 2.1, "q": 0.01,
        "about": "these networks", "runs": 1, "other_runs": 1, "resampled": "layer, unit",
        "table": HEADLINE.table, "measure": HEADLINE.measure, "site": HEADLINE.site,
    } | found | more  # fmt: skip


@pytest.mark.parametrize(
    ("effect", "supports", "said"),
    [
        (row((-0.4, -0.5, -0.3)), "lower", "for"),
        (row((-0.4, -0.5, -0.3)), "higher", "against"),
        (row((0.4, 0.3, 0.5)), "lower", "against"),
        (row((0.2, -0.1, 0.5)), "lower", "cannot tell"),
        (row((0.4, 0.3, 0.5), q=0.2), "higher", "cannot tell"),
        (row((0.05, 0.02, 0.08)), "higher", "no difference"),
        (row((0.0, NAN, NAN)), "higher", "no difference"),
        (row((1.0, NAN, NAN)), "higher", "for"),
        (row(difference=(-1.0, -2.0, -0.5), q=NAN), "lower", "for"),
        (row(difference=(-1.0, -2.0, 0.5), q=NAN), "lower", "cannot tell"),
        (row(difference=(-1.0, NAN, NAN), q=NAN), "lower", "cannot tell"),
    ],
)
def test_an_interval_speaks(effect: dict[str, Any], supports: Any, said: str) -> None:
    assert speaks(effect, supports) == said


def finding(said: Any, images: str = "x", one: Evidence = HEADLINE, **more: Any) -> Finding:
    effect = {"for": -0.4, "against": 0.4, "no difference": 0.01, "cannot tell": 0.1}[said]
    return Finding(one, images, row((effect, effect - 0.12, effect + 0.12), **more), said)


def test_the_headline_on_all_images_is_the_verdict() -> None:
    assert verdict([finding("for"), finding("for", "y")]) == "yes"
    assert verdict([finding("against"), finding("no difference", "y")]) == "no"
    assert verdict([finding("for"), finding("against", "y")]) == "cannot tell"
    assert verdict([finding("for"), finding("cannot tell", "y")]) == "cannot tell"
    assert verdict([]) == "cannot tell"


def test_two_sentences_and_one_seed_says_so() -> None:
    head = [finding("against")]
    rest = [finding("for", one=OTHER), finding("cannot tell", one=OTHER)]
    text = answer(head, head + rest, ("a", "b"))
    assert text.startswith("Of these networks, **no**: things: on x 1.00 (a) and 2.00 (b)")
    assert "**cannot tell**, since an arm has a single seed" in text
    assert "of the 2 other comparisons 1 speak for it, 0 against it" in text
    assert text.count(". ") == 1 and text.endswith(".")
    open_ = [finding("cannot tell")]
    assert answer(open_, open_, ("a", "b")).startswith("Of these networks one **cannot tell**: ")
    many = [finding("for", about="training", runs=5, other_runs=5)]
    text = answer(many, many, ("a", "b"))
    assert text.startswith("**Yes**: things") and "single seed" not in text


def comparison(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows)


def test_what_would_change_it_is_in_the_numbers() -> None:
    effect = row((-0.4, -0.5, -0.2))
    layers = comparison(
        effect | {"site": "blocks.0.mlp.hook_post"},
        row((0.4, 0.3, 0.5)) | {"site": "blocks.1.mlp.hook_post"},
    )
    accuracy = row(
        difference=(-0.1, -0.15, -0.05), table="images", measure="accuracy", site="",
        value=0.5, other_value=0.6,
    )  # fmt: skip
    alike = row(difference=(0.0, NAN, NAN), table="images", measure="accuracy", site="")
    tables = {"x": comparison(effect, accuracy), "y": comparison(alike)}
    found = findings(tables, [HEADLINE, OTHER], ("a", "b"))
    assert [f.speaks for f in found] == ["for"]
    lines = "\n".join(
        what_would_change(found, [*found, finding("against", one=OTHER)], tables, {"x": layers},
                          "r.yaml")
    )  # fmt: skip
    assert "an arm has one network; from 4 in each on" in lines
    assert "`polysem train r.yaml --set seed=1 --out DIR`" in lines
    assert "2.0 times as far from 0 as its interval reaches" in lines
    assert "of 2 layers 1 speak for it, 1 against it" in lines
    assert "Accuracy on x differs: a 50.0%, b 60.0%" in lines
    assert "Accuracy on y" not in lines
    assert "for it speak excess_rank; against it loss" in lines
    table = evidence_table(found, ("a", "b"))
    assert table.loc[0, "delta"] == "−0.400 (−0.500 to −0.200)"


def test_no_comparison_or_headline_is_one_sentence(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "title": "t", "hypothesis": "h", "arms": ("a", "b"), "encoders": {"x": None},
        "evidence": [HEADLINE], "recipe": None, "seconds": (1.0, 1.0),
        "comparisons": {"x": tmp_path},
    }  # fmt: skip
    with pytest.raises(RunError, match="holds no comparison"):
        write_answer(tmp_path / "out", **given)
    for name in ("comparison", "layers"):
        comparison(row(measure="other")).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(RunError, match="headline measure excess_rank"):
        write_answer(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
