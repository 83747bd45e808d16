"""``polysem report``: the site as a user gets it, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import random_activations, write_run
from PIL import Image
from shell import polysem

from polysem import write_report
from polysem.data.shapes import Shapes
from polysem.store.run import Run

N = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    data = Shapes("test", n=N, size=32)
    path = tmp_path_factory.mktemp("runs") / "shapes"
    return write_run(path, data, random_activations(N), size=(32, 32), ranks=4)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code, out, err = polysem(capsys, "report", *words)
    assert (code, out) == (2, "")
    assert err.startswith("polysem: ")
    assert err.count("\n") == 1
    return err


def test_a_report_is_written_and_where_to_open_it_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "report"
    code, out, err = polysem(capsys, "report", run.path, "--out", place)
    assert (code, err) == (0, "")
    assert (place / "index.html").absolute().as_uri() in out
    with Image.open(next((place / "images").rglob("*.webp"))) as sheet:
        assert np.asarray(sheet).std() > 10  # the images themselves, not grey fields
    assert "--overwrite" in refused(capsys, run.path, "--out", place)
    assert polysem(capsys, "report", run.path, "--out", place, "--overwrite")[0] == 0


def test_python_writes_the_same(run: Run, tmp_path: Path) -> None:
    page = write_report(run, tmp_path / "report", title="<Mine>", n_exemplars=2, progress=False)
    assert "&lt;Mine&gt;" in page.read_text()


def test_what_cannot_be_shown_is_refused_and_nothing_written(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no run folder" in refused(capsys, tmp_path / "none", "--out", tmp_path / "r")
    said = refused(capsys, run.path, "--out", tmp_path / "r", "--data", "shapes", "--data", "x")
    assert "one for each" in said
    other = "shapes:train?n=20&size=32"
    assert "fingerprint" in refused(capsys, run.path, "--out", tmp_path / "r", "--data", other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert "something other" in refused(capsys, run.path, "--out", tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
