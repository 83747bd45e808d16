from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_run import Activations, write_run
from shell import polysem

from polysem.analysis.concept_table import MEANINGS, concepts
from polysem.data.shapes import Shapes
from polysem.errors import RunError
from polysem.store.run import Run

SITE = "hook_pooled"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Unit 0 answers to red and star, unit 1 downwards to hearts, unit 2 is dead, 3 is noise."""
    data = Shapes("test", n=400)
    names, presence = list(data.concepts), data.concept_matrix()
    rng = np.random.default_rng(0)
    values = 0.1 * rng.normal(size=(400, 4))
    values[:, 0] += presence[:, names.index("red")] + 0.8 * presence[:, names.index("star")]
    values[:, 1] -= presence[:, names.index("heart")]
    values[:, 2] = 1
    run = write_run(tmp_path / "run", data, {SITE: Activations(values)})
    shown = pd.DataFrame(presence, columns=names)
    shown.insert(0, "image", range(400))
    shown.sample(frac=1, random_state=0).to_parquet(run.path / "tables" / "shown.parquet")
    return run


def test_planted_concepts_come_back_by_name(run: Run) -> None:
    table = concepts(run, progress=False)
    assert list(table.columns) == list(MEANINGS)
    pd.testing.assert_frame_equal(run.table("concepts"), table)
    found = table.set_index(["unit", "tail"])
    assert found.loc[(0, "upper"), "concepts"] == "red, star"
    assert found.loc[(0, "upper"), "count"] == 2
    assert found.loc[(1, "lower"), "concepts"] == "heart"
    assert found.loc[(1, "lower"), "best_concept"] == "heart"
    assert found.loc[(1, "lower"), "best_auroc"] > 0.99
    assert pd.isna(found.loc[(2, "upper"), "best_concept"])
    assert found.loc[2, "count"].tolist() == [0, 0]
    assert found.loc[(3, "upper"), "count"] == 0


def test_the_command_and_a_run_without_concepts(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = polysem(capsys, "concepts", run.path)
    assert code == 0, err
    assert "Concepts of 8 faces" in out
    (run.path / "tables" / "shown.parquet").unlink()
    with pytest.raises(RunError, match="does not say which concepts"):
        concepts(run, progress=False)
