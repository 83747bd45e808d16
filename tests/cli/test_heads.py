"""``polysem heads`` and ``polysem compare-heads`` as a user gets them."""

from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from shell import polysem
from studied_run import studied_run, study_arrays

from polysem.analysis.coadaptation import add_head_tables
from polysem.models.checkpoint import save_checkpoint
from polysem.models.load import load_model
from polysem.store.run import Run

ARCH = "vit_micro_patch8_gap_64"
ARGS = {"img_size": 16, "depth": 2, "num_classes": 8, "embed_dim": 24, "num_heads": 3}
DATA = "shapes:test?n=5&size=16"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(ARCH, **ARGS)
    transform = load_model(f"timm:{ARCH}").transform
    values = transform.to_dict() | {"size": [16, 16]}
    path = tmp_path / "ckpt.pt"
    save_checkpoint(
        path, ARCH, ARGS, model.state_dict(), transform=type(transform).from_dict(values),
        classes=None,
    )  # fmt: skip
    return path


def test_a_study_is_printed_kept_and_drawn(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ("heads", "--model", checkpoint, "--data", DATA, "--out", out, "--device", "cpu")
    quick = ("--exact-pairs", 5, "--draws", 1, "--no-chance")
    code, printed, err = polysem(capsys, *words, *quick)
    assert (code, err) == (0, "")
    assert "5 images, 6 heads, target margin" in printed
    assert "all pairs by gradients: rank correlation with exact interactions" in printed
    assert "1 − rank correlation of its two directions" in printed
    pictures = {path.name for path in (out / "pictures").iterdir()}
    assert {"heads_importance.png", "heads_interactions.png", "heads_graph.png"} <= pictures
    run = Run.open(out)
    assert len(run.table("heads")) == 6 and len(run.table("head_pairs")) == 15
    code, printed, err = polysem(capsys, "show", out, "--head", "1.2", "--out", tmp_path / "h.png")
    assert (code, err) == (0, "") and (tmp_path / "h.png").is_file()
    for bad, said in {"1": "such as 3.1", "a.b": "such as 3.1", "7.0": "no head 7.0"}.items():
        code, _, err = polysem(capsys, "show", out, "--head", bad)
        assert code == 2 and said in err and err.count("\n") == 1
    code, printed, _ = polysem(capsys, *words, "--exact-pairs", 0, "--limit", 2, "--no-pictures")
    assert code == 0 and "not held against exact interactions" in printed  # added to the run
    assert Run.open(out).gates.sizes["image"] == 2


def test_bad_words_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, said in {
        "timm:resnet20_32": "no attention heads",
        "timm:vit_tiny_patch16_224x": "did you mean",
    }.items():
        code, _, err = polysem(
            capsys, "heads", "--model", model, "--data", DATA, "--out", tmp_path / "run"
        )
        assert code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        add_head_tables(studied_run(tmp_path / name, study_arrays(6, 2, 2)))
    words = ("compare-heads", tmp_path / "a", tmp_path / "b")
    code, printed, err = polysem(capsys, *words, "--out", tmp_path / "compared")
    assert (code, err) == (0, "")
    assert "another training seed" in printed
    table = pd.read_csv(tmp_path / "compared" / "table.csv").set_index("statistic")
    assert table["difference"]["index"] == 0
    assert (tmp_path / "compared" / "dropped.png").is_file()
    code, _, err = polysem(capsys, "compare-heads", tmp_path / "a", tmp_path / "nowhere")
    assert code == 2 and "no run folder" in err
