"""A folder of evolution: what opens, what is refused, what may be written over."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import Activations, PlainSource
from evolved import write_series

from polysem.errors import MissingError, RunError, SpecError
from polysem.store.evolution import (
    Evolution,
    check_evolution,
    clear_evolution,
    read_evolution,
    write_evolution,
)

N = 30


@pytest.fixture
def evolution(tmp_path: Path) -> Evolution:
    source = PlainSource("drawn", [str(i) for i in range(N)])
    shown = {"hook_pooled": Activations(np.random.default_rng(0).normal(size=(N, 3)))}
    return write_series(tmp_path / "a", source, [shown, shown])


def test_steps_runs_and_tables(evolution: Evolution) -> None:
    assert evolution.steps == [0, 1]
    assert evolution.run(1).sites == ["hook_pooled"]
    table = evolution.table("births")
    assert table.attrs["columns"]["birth_label"].startswith("step of the first snapshot")
    assert "2 snapshots to step 1" in repr(evolution)
    with pytest.raises(SpecError, match="has no step 5"):
        evolution.run(5)
    with pytest.raises(SpecError, match="did you mean 'births'"):
        evolution.table("birth")


def test_what_is_no_finished_evolution_does_not_open(evolution: Evolution, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no folder at"):
        Evolution.open(tmp_path / "none")
    with pytest.raises(RunError, match="holds no evolution"):
        Evolution.open(evolution.path / "step_0")
    facts = read_evolution(evolution.path)
    write_evolution(evolution.path, facts | {"status": "running"})
    with pytest.raises(RunError, match="not finished; go on with: polysem evolve … --resume"):
        Evolution.open(evolution.path)
    (evolution.path / "evolution.json").write_text('{"evolution": 99, "status": "complete"}')
    with pytest.raises(RunError, match="evolution format 99"):
        Evolution.open(evolution.path)


def test_where_an_evolution_may_be_written(evolution: Evolution, tmp_path: Path) -> None:
    def check(path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        check_evolution(path, resume=resume, overwrite=overwrite)

    check(tmp_path / "new")
    check(evolution.path, resume=True)
    check(evolution.path, overwrite=True)
    with pytest.raises(RunError, match="already holds a result; go on with --resume"):
        check(evolution.path)
    with pytest.raises(RunError, match="exclude each other"):
        check(evolution.path, resume=True, overwrite=True)
    with pytest.raises(MissingError, match="holds nothing to resume"):
        check(tmp_path / "new", resume=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunError, match="something other than an evolution and is left alone"):
            check(foreign, **flags)
    with pytest.raises(RunError, match="is a file"):
        check(foreign / "thesis.tex")


def test_clearing_takes_only_what_was_written(evolution: Evolution) -> None:
    (evolution.path / "notes.txt").touch()
    clear_evolution(evolution.path, but=evolution.path / "step_1")
    assert {path.name for path in evolution.path.iterdir()} == {"step_1", "notes.txt"}
