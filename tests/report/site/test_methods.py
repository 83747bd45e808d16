"""The page of methods: formulas of what is shown, with sources, and commands that can be run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from site_run import bare_run, full_run, picture

from polysem.report.site.formulas import FORMULAS
from polysem.report.site.methods import commands
from polysem.report.site.write import write_site
from polysem.store.additions import add_table
from polysem.store.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return full_run(tmp_path_factory.mktemp("runs") / "one; rm")


def test_formulas_are_those_of_what_the_run_holds(run: Run, tmp_path: Path) -> None:
    full = write_site([run], [picture], tmp_path / "full").parent / "methods.html"
    bare = write_site([bare_run(tmp_path / "run")], [picture], tmp_path / "bare").parent
    for formula in FORMULAS:
        if formula.needs != "concepts":
            assert f"<dt>{formula.name}</dt>" in full.read_text()
    assert "<dt>Hoyer sparsity</dt>" in (bare / "methods.html").read_text()
    assert "<dt>Excess rank</dt>" not in (bare / "methods.html").read_text()


def test_every_source_has_a_link(run: Run) -> None:
    for formula in FORMULAS:
        assert bool(formula.source) == formula.link.startswith("https://"), formula.name


def test_commands_can_be_pasted_into_a_shell(run: Run) -> None:
    found = [shlex.split(command) for command in commands(run)]
    assert found[0][:2] == ["polysem", "probe"]
    assert found[0][found[0].index("--data") + 1] == "photos <b>"
    assert found[0][-1] == str(run.path)
    assert {words[1] for words in found} >= {"polysemanticity", "facets", "clusters", "heads"}


def test_names_are_made_again_with_the_same_model_and_words(run: Run) -> None:
    labels = run.table("labels")
    meanings = dict.fromkeys(labels.columns, "drawn")
    made_by = {"clip": "ViT-B-32:my file", "vocabulary": "common"}
    add_table(run, "labels", labels, meanings=meanings, made_by=made_by)
    (found,) = [shlex.split(line) for line in commands(run) if "describe-neurons" in line]
    assert found[3:] == ["--clip", "ViT-B-32:my file", "--concepts", "common"]
