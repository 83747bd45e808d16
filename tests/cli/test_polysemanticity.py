"""``polysem polysemanticity``, ``clusters`` and ``embed`` on a small run, as from a shell."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_run import PlainSource, random_activations, write_run
from shell import polysem

from polysem.analysis import grouping


@pytest.fixture
def run(tmp_path: Path) -> Path:
    n = 24
    source = PlainSource(
        "plain", [str(i) for i in range(n)], np.arange(n) % 3, ("a", "$b", "c"), "1" * 64
    )
    return write_run(tmp_path / "run", source, random_activations(n)).path


def test_scores_are_printed_and_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = polysem(capsys, "polysemanticity", run)
    assert code == 0
    assert "blocks.0.mlp.hook_post" in out
    assert "effective_classes" in out
    assert "note: the images have no embeddings" in out
    assert "participation_ratio" in out
    code, out, _ = polysem(
        capsys, "polysemanticity", run, "--against", run, "--out", tmp_path / "both"
    )
    assert code == 0
    assert (pd.read_csv(tmp_path / "both" / "table.csv")["difference"].fillna(0) == 0).all()
    assert (tmp_path / "both" / "layers.png").stat().st_size > 5000


def test_groups_are_drawn(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "map_points", lambda d: d[:, :2].astype(float))
    code, out, _ = polysem(capsys, "clusters", run, "--min-size", 2)
    assert code == 0
    assert "stability" in out
    assert (run / "clusters.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("polysemanticity", "nowhere"), "no run folder at nowhere"),
        (("polysemanticity", "RUN", "--sites", "blocks.7.*"), "matches 'blocks.7.*'"),
        (("polysemanticity", "RUN", "--dictionary", "nfm"), "did you mean 'nmf'?"),
        (("polysemanticity", "RUN", "--against", "RUN"), "no table 'polysemanticity'"),
        (("polysemanticity", "RUN", "--out", "x"), "name the other run with --against"),
        (("clusters", "RUN", "--feature", "centroid"), "holds no embeddings"),
        (("clusters", "RUN", "--out", "map.gif"), "no name for a picture"),
        (("embed", "RUN", "--encoder", "open_clip:nothing"), "open_clip has no model"),
        (("embed", "nowhere"), "no run folder at nowhere"),
        (("bench", "monosemanticity", "--out", "x", "--images", "a,2"), "has to be numbers"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: tuple[str, ...], sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in run.rglob("*"))
    code, _, err = polysem(capsys, *(run if word == "RUN" else word for word in words))
    assert code == 2
    assert sentence in err
    assert err.startswith("polysem: ")
    assert err.count("\n") == 1
    assert sorted(p.name for p in run.rglob("*")) == before
