"""The answer of a study, in words that the numbers choose: yes, no or cannot tell, and why.

What counts as evidence, and which way, is said in the YAML before anything is measured.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from polysem.analysis.permutation import least_p
from polysem.errors import RunError
from polysem.report.markdown import escaped, markdown_table
from polysem.report.page import number
from polysem.store.tables import save_text

__all__ = ["NEGLIGIBLE", "Evidence", "Finding", "findings", "verdict", "write_answer"]

#: Cliff's delta below which a difference is held to be too small to matter (Romano et al. 2006).
NEGLIGIBLE = 0.147

#: Tables that rest on likeness of images.
_EMBEDDED = ("polysemanticity", "unit_facets")

Speaks = Literal["for", "against", "no difference", "cannot tell"]


@dataclass(frozen=True)
class Evidence:
    """A measure and which way it would speak for the hypothesis."""

    table: str
    measure: str
    site: str
    supports: Literal["lower", "higher"]
    says: str


@dataclass(frozen=True)
class Finding:
    """What a comparison says to one piece of evidence on some images."""

    evidence: Evidence
    images: str
    row: dict[str, Any]
    speaks: Speaks


def findings(
    tables: Mapping[str, pd.DataFrame], evidence: Sequence[Evidence], arms: tuple[str, str]
) -> list[Finding]:
    """Return what comparisons say to each piece of evidence; a measure that is not there is out.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        ``comparison.parquet`` by images.
    evidence : sequence of Evidence
    arms : (str, str)
        The differences are those of the first from the second.
    """
    found = []
    for one in evidence:
        for images, table in tables.items():
            its = table[
                (table["table"] == one.table) & (table["measure"] == one.measure)
                & (table["site"] == one.site) & (table["arm"] == arms[0])
                & (table["other"] == arms[1])
            ]  # fmt: skip
            for row in its.to_dict("records"):
                named = {str(key): value for key, value in row.items()}
                found.append(Finding(one, images, named, speaks(named, one.supports)))
    return found


def speaks(row: Mapping[str, Any], supports: Literal["lower", "higher"]) -> Speaks:
    """Return which way an effect speaks, by its interval.

    For or against if the interval of the effect excludes 0 (and, where there is a test, q is at
    most 5 %); no difference if all of it is below what matters; else it cannot tell.
    """
    name = "delta" if math.isfinite(row["delta"]) else "difference"
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if name == "delta" and abs(value) == 1:
        low = high = value  # all units of an arm are above all of the other
    if name == "delta" and value == 0 and not math.isfinite(low):
        return "no difference"
    if not (math.isfinite(low) and math.isfinite(high)):
        return "cannot tell"
    if name == "delta" and low > -NEGLIGIBLE and high < NEGLIGIBLE:
        return "no difference"
    if low <= 0 <= high or row["q"] > 0.05:
        return "cannot tell"
    return "for" if (low > 0) == (supports == "higher") else "against"


def verdict(of_headline: Sequence[Finding]) -> str:
    """Return yes, no or cannot tell: what the headline says on all images."""
    said = {finding.speaks for finding in of_headline}
    if said == {"for"}:
        return "yes"
    return "no" if said and said <= {"against", "no difference"} else "cannot tell"


def write_answer(
    folder: Path,
    *,
    title: str,
    hypothesis: str,
    arms: tuple[str, str],
    comparisons: Mapping[str, Path],
    encoders: Mapping[str, str | None],
    evidence: Sequence[Evidence],
    recipe: str | None,
    seconds: tuple[float, float],
) -> Path:
    """Write README.md, with tables and forest plots of the comparisons beside, and return it.

    Raises
    ------
    RunError
        If a comparison, or the headline's measure, is missing, or the disk refuses.
    """
    tables, layers = ({k: _read(p, name) for k, p in comparisons.items()}
                      for name in ("comparison", "layers"))  # fmt: skip
    found = findings(tables, evidence, arms)
    headline = [f for f in found if f.evidence == evidence[0]]
    if not headline:
        raise RunError(
            f"no comparison holds the headline measure {evidence[0].measure} of "
            f"{evidence[0].table} at {evidence[0].site or 'whole networks'}"
        )
    lines = [
        f"# {escaped(title)}", "", answer(headline, found, arms), "",
        f"Hypothesis: {escaped(hypothesis)}", "", "## Evidence", "",
        *markdown_table(evidence_table(found, arms)), "",
        f"Values and differences ({arms[0]} − {arms[1]}) with 95 % intervals; delta is Cliff's. "
        f"*speaks*: by the interval, and q ≤ 0.05 where there is a test; *no difference*: all of "
        f"the interval within ± {NEGLIGIBLE}. What counts as evidence, and which way, is in the "
        "study's YAML.", "",
    ]  # fmt: skip
    for name, place in comparisons.items():
        lines += [f"![Effects on {name}]({name}_forest.png)", ""]
        if (place / "dropped.png").is_file():
            lines += [f"![Heads dropped at random, on {name}]({name}_dropped.png)", ""]
    lines += ["## What would change it", ""]
    lines += [f"- {line}" for line in what_would_change(headline, found, tables, layers, recipe)]
    if any(one.evidence.table in _EMBEDDED for one in found):
        lines += [f"- {line}" for line in _encoders(encoders)]
    wall, cpu = seconds
    lines += ["", f"All steps took {wall / 60:.1f} minutes ({cpu / 60:.1f} CPU minutes).", ""]
    for name, place in comparisons.items():
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("forest.png", "dropped.png", "comparison.csv", "layers.csv"):
            (folder / f"{name}_{file}").unlink(missing_ok=True)
            if (place / file).is_file():
                shutil.copyfile(place / file, folder / f"{name}_{file}")
    return save_text("\n".join(lines), folder / "README.md")


def _read(folder: Path, name: str) -> pd.DataFrame:
    file = folder / f"{name}.parquet"
    if not file.is_file():
        raise RunError(f"{folder} holds no comparison; the study needs a step that writes it there")
    return pd.read_parquet(file)


def answer(headline: Sequence[Finding], found: Sequence[Finding], arms: tuple[str, str]) -> str:
    """Return the answer in two sentences."""
    said = verdict(headline)
    single = any(f.row["about"] == "these networks" for f in headline)
    details = "; ".join(_detail(f, arms) for f in headline)
    start = f"**{said[0].upper()}{said[1:]}**"
    if single:
        start = f"Of these networks{' one' if said == 'cannot tell' else ','} **{said}**"
    first = f"{start}: {headline[0].evidence.says}: {details}."
    rest = [f for f in found if f.evidence != headline[0].evidence]
    counts = ", ".join(
        f"{sum(f.speaks == way for f in rest)} {text}" for way, text in _COUNTED.items()
    )
    second = f"of the {len(rest)} other comparisons {counts}"
    if single:
        second = (
            "of the hypothesis, which is about a way of making networks, one **cannot tell**, "
            f"since an arm has a single seed; {second}"
        )
    return f"{first} {second[0].upper()}{second[1:]}."


_COUNTED = {
    "for": "speak for it",
    "against": "against it",
    "no difference": "show no difference that matters",
    "cannot tell": "cannot tell",
}


def _detail(finding: Finding, arms: tuple[str, str]) -> str:
    row = finding.row
    name = "delta" if math.isfinite(row["delta"]) else "difference"
    text = f"on {finding.images} {number(row['value'])} ({arms[0]}) and "
    text += f"{number(row['other_value'])} ({arms[1]})"
    word = "Cliff's delta" if name == "delta" else name
    return f"{text}, {word} {_with_ends(row, name)}"


def _with_ends(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if not math.isfinite(value):
        return "–"
    if not math.isfinite(low):
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})"


def evidence_table(found: Sequence[Finding], arms: tuple[str, str]) -> pd.DataFrame:
    """Return a row a finding, as text."""
    return pd.DataFrame(
        {
            "evidence": [f.evidence.says for f in found],
            "measure": [f"{f.evidence.table} {f.evidence.measure}" for f in found],
            "supports": [f.evidence.supports for f in found],
            "images": [f.images for f in found],
            arms[0]: [_with_ends(f.row, "value") for f in found],
            arms[1]: [_with_ends(f.row, "other_value") for f in found],
            "difference": [_with_ends(f.row, "difference") for f in found],
            "delta": [_with_ends(f.row, "delta") for f in found],
            "q": [number(float(f.row["q"]), 2) for f in found],
            "speaks": [f.speaks for f in found],
        }
    )


def what_would_change(
    headline: Sequence[Finding],
    found: Sequence[Finding],
    tables: Mapping[str, pd.DataFrame],
    layers: Mapping[str, pd.DataFrame],
    recipe: str | None,
) -> list[str]:
    """Return sentences on what the answer hangs on, from the numbers."""
    lines = []
    seeds = min(min(f.row["runs"], f.row["other_runs"]) for f in headline)
    enough = next(n for n in range(2, 100) if least_p(n, n) <= 0.05)
    if seeds < enough:
        has = "one network" if seeds == 1 else f"{seeds} networks"
        line = (
            f"Seeds: an arm has {has}; from {enough} in each on, a test over seeds can reach 5 % "
            f"({least_p(enough, enough):.3f} at least)."
        )
        if recipe is not None:
            line += f" More of them: `polysem train {recipe} --set seed=1 --out DIR`."
        lines.append(line)
    for finding in headline:
        lines.append(_margin(finding))
        lines.append(_by_layer(finding, layers[finding.images]))
    for images, table in tables.items():
        accuracy = table[(table["table"] == "images") & (table["measure"] == "accuracy")]
        for row in accuracy.to_dict("records"):
            if row["difference_low"] > 0 or row["difference_high"] < 0:
                lines.append(
                    f"Accuracy on {images} differs: {row['arm']} {row['value']:.1%}, "
                    f"{row['other']} {row['other_value']:.1%} (difference "
                    f"{row['difference_low']:+.1%} to {row['difference_high']:+.1%}); arms of "
                    "equal accuracy could differ otherwise."
                )
    against = sorted({f.evidence.measure for f in found if f.speaks == "against"})
    support = sorted({f.evidence.measure for f in found if f.speaks == "for"})
    if against and support:
        lines.append(
            f"Measures disagree: for it speak {', '.join(support)}; against it "
            f"{', '.join(against)}. Another headline could give another answer."
        )
    return [line for line in lines if line]


def _margin(finding: Finding) -> str:
    row = finding.row
    name = "delta" if math.isfinite(row["delta"]) else "difference"
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if not math.isfinite(low) or value == 0:
        return ""
    reach = value - low if value > 0 else high - value
    return (
        f"Headline on {finding.images}: its {name} is {abs(value) / reach:.1f} times as far from 0 "
        f"as its interval reaches that way (drawn over {row['resampled'] or 'nothing'})."
    )


def _by_layer(finding: Finding, layers: pd.DataFrame) -> str:
    one, row = finding.evidence, finding.row
    its = layers[
        (layers["table"] == one.table) & (layers["measure"] == one.measure)
        & (layers["arm"] == row["arm"]) & (layers["other"] == row["other"])
        & layers["site"].map(lambda site: _like(site, one.site)).astype(bool)
    ]  # fmt: skip
    if len(its) < 2:
        return ""
    ways = [speaks({str(k): v for k, v in r.items()}, one.supports) for r in its.to_dict("records")]
    parts = [f"{ways.count(way)} {text}" for way, text in _COUNTED.items() if way in ways]
    return f"Headline on {finding.images}, layer by layer: of {len(its)} layers {', '.join(parts)}."


def _like(site: str, glob: str) -> bool:
    start, star, end = glob.partition("*")
    return bool(star) and site.startswith(start) and site.endswith(end)


def _encoders(encoders: Mapping[str, str | None]) -> list[str]:
    return [
        f"Images of {images} are embedded by `{encoder}`; another encoder sees other likenesses, "
        "on which excess rank, monosemanticity and facets rest."
        for images, encoder in encoders.items()
        if encoder is not None
    ]
