"""The page of methods: formulas with their sources, what columns hold, and how to do it again."""

from __future__ import annotations

import shlex
from typing import Any

from polysem.report.site.extras import Whole
from polysem.report.site.formulas import FORMULAS, Formula
from polysem.report.site.parts import Content, Shown
from polysem.store.run import Run

__all__ = ["commands", "methods"]

#: The command that makes each table, in the order in which they are run.
_COMMANDS = {
    "polysemanticity": "polysem polysemanticity {run}",
    "unit_facets": "polysem facets {run}",
    "concepts": "polysem concepts {run}",
    "clusters": "polysem clusters {run}",
    "facet_clusters": "polysem clusters {run} --of facets",
    "heads": "polysem heads --model {model} --data {data} --out {run}",
    "labels": "polysem describe-neurons {run} {names}",
    "edges": "polysem circuits {run} --model {model}",
}

#: Options of a probe that are switches, as its manifest has them.
_SWITCHES = ("pooled", "patterns", "smoothing")


def methods(whole: Whole) -> Content:
    """Return the page of methods of a site."""
    runs = whole.runs
    used = [formula for formula in FORMULAS if any(_is_there(one.run, formula) for one in runs)]
    topics: dict[str, list[Formula]] = {}
    for formula in used:
        topics.setdefault(formula.topic, []).append(formula)
    return Content(
        {
            "topics": topics,
            "reproduced": [
                {"name": one.name, "commands": commands(one.run), "facts": _facts(one.run)}
                for one in runs
            ],
            "columns": _columns(runs),
        }
    )


def commands(run: Run) -> list[str]:
    """Return the commands that make a run once more, as far as its manifest tells them."""
    facts, options = run.manifest, run.manifest["options"]
    words = {
        "run": shlex.quote(str(run.path)),
        "model": shlex.quote(facts["model"]["spec"]),
        "data": shlex.quote(facts["data"]["name"]),
        "names": _names(run),
    }
    sites = shlex.quote(",".join(facts["sites"]))
    probe = f"polysem probe --model {words['model']} --data {words['data']} --sites {sites}"
    probe += f" --top-k {options['top_k']}"
    if facts.get("embedding"):
        probe += f" --embed {shlex.quote(facts['embedding']['encoder'])}"
    probe += "".join(f" --{switch}" for switch in _SWITCHES if options.get(switch))
    found = [f"{probe} --out {words['run']}"]
    found += [text.format(**words) for name, text in _COMMANDS.items() if run.has_table(name)]
    if (run.path / "contributions.zarr").is_dir():
        found.append(f"polysem explain --run {words['run']} --model {words['model']}")
    return found


def _names(run: Run) -> str:
    """Return the options that name units with the model and the words that were taken."""
    made_by = run.table("labels").attrs.get("made_by") if run.has_table("labels") else None
    if not made_by:
        return "--clip MODEL"
    return f"--clip {shlex.quote(made_by['clip'])} --concepts {shlex.quote(made_by['vocabulary'])}"


def _is_there(run: Run, formula: Formula) -> bool:
    return (
        not formula.needs
        or run.has_table(formula.needs)
        or (formula.needs.endswith(".zarr") and (run.path / formula.needs).is_dir())
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = run.manifest
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return [
        ("Weights", f"SHA-256 {facts['model']['sha256']}"),
        ("Images", f"{facts['data']['n_images']:,}, fingerprint {facts['data']['fingerprint']}"),
        ("Versions", versions or "not recorded"),
    ]


def _columns(runs: list[Shown]) -> list[dict[str, Any]]:
    """Return what the columns of every table hold, as the tables themselves say it."""
    found: dict[str, dict[str, str]] = {}
    for shown in runs:
        for file in sorted((shown.run.path / "tables").glob("*.parquet")):
            said = shown.run.table(file.stem).attrs.get("columns")
            if said:
                found.setdefault(file.stem, {}).update(said)
    return [{"table": name, "columns": list(said.items())} for name, said in sorted(found.items())]
