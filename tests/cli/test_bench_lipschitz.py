"""``polysem bench lipschitz`` writes bounds and slopes of a checkpoint, or says what has none."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from shell import polysem as run

from polysem.models.checkpoint import save_checkpoint
from polysem.models.registry import evaluation_transform

ARCH = "vit_micro_patch8_gap_64"
SIZES = {"img_size": 16, "depth": 1, "embed_dim": 16, "num_heads": 2, "num_classes": 3}


def saved(path: Path, **options: object) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(ARCH, **SIZES, **options)
    transform = evaluation_transform(model)
    save_checkpoint(path, ARCH, {**SIZES, **options}, model.state_dict(), transform=transform)
    return path


def test_it_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "a.pt", attention="cosine", center_norm=True)
    out = tmp_path / "out"
    code, printed, _ = run(
        capsys, "bench", "lipschitz", "--model", model, "--out", out, "--images", 1
    )
    assert code == 0 and "measured: the largest slope" in printed
    table = pd.read_csv(out / "table.csv")
    assert list(table["part"]) == ["blocks.0", "blocks.0.attn", "network"]
    assert (table["measured"] <= table["bound"]).all()


def test_a_model_without_bound_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "a.pt")
    code, _, err = run(capsys, "bench", "lipschitz", "--model", model, "--out", tmp_path / "out")
    assert code == 2 and "blocks.0.attn has no Lipschitz bound" in err
    assert not (tmp_path / "out").exists()
