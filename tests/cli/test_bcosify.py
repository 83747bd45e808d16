"""``polysem bcosify`` writes a checkpoint that loads, says how well it agrees, refuses plainly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from shell import polysem as run

from polysem.data.shipped import shipped_file
from polysem.models.load import load_model


def test_a_shipped_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "start.safetensors"
    code, printed, err = run(
        capsys,
        "bcosify",
        "--model",
        shipped_file("models", "shapes_micro_vit.safetensors"),
        "--out",
        out,
    )
    assert (code, err) == (0, "")
    found = re.search(r"at most (\S+) from the standard model's", printed)
    assert found and float(found[1]) < 1e-4
    assert f"model: {{weights: {out}}}" in printed and "note" not in printed
    made = load_model(out)
    assert made.classes is not None and made.classes[0] == "red"


def test_random_weights_and_a_conversion_at_once_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "start.pt"
    code, printed, _ = run(
        capsys, "bcosify", "--model", "timm:resnet20_32", "--share", 1, "--out", out
    )
    assert code == 0
    assert "has random weights" in printed and "needs fine-tuning" in printed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "timm:convnext_atto"], "ConvNeXt"),
        (["--model", shipped_file("models", "shapes_micro_bcos.safetensors")], "6 channels"),
        (["--model", "nowhere/model.pt"], "there is no file"),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    code, _, err = run(capsys, "bcosify", *words, "--out", tmp_path / "a.safetensors")
    assert code == 2
    assert named in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
