"""``polysem train``: several recipes, changes to them, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from shell import polysem

RECIPE = {
    "model": {
        "name": "vit_micro_patch8_gap_64",
        "args": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    },
    "data": {"train": "shapes:train?n=40", "test": "shapes:test?n=9"},
    "optimiser": {"lr": 1e-3},
    "schedule": {"steps": 2},
    "batch_size": 8,
    "snapshots": 0,
}


def _write(path: Path, **changes: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**RECIPE, **changes}), encoding="utf-8")
    return path


def test_several_recipes_and_what_is_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [_write(tmp_path / "a.yaml"), _write(tmp_path / "b.yaml", seed=7)]
    words = ("train", *recipes, "--out", tmp_path / "out", "--set", "schedule.steps=1")
    code, out, _ = polysem(capsys, *words)
    assert code == 0
    assert out.count("wrote") == 2
    for name in "ab":
        card = (tmp_path / "out" / name / "README.md").read_text(encoding="utf-8")
        assert f"{name}.yaml --out {tmp_path / 'out' / name} --set schedule.steps=1" in card
        assert "1 steps of 8 images" in card
    model = tmp_path / "out" / "a" / "model.safetensors"
    written = model.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "b")  # as if not yet begun
    code, out, _ = polysem(capsys, *words, "--resume")
    assert code == 0
    assert model.stat().st_mtime_ns == written  # finished before, passed over
    assert (tmp_path / "out" / "b" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "seed"], "expected KEY=VALUE"),
        (["--set", "a..b=1"], "expected KEY=VALUE"),
        (["--set", "sede=1"], "did you mean 'seed'"),
        (["--set", "optimiser.lr=fast"], "optimiser.lr is 'fast'"),
    ],
)
def test_a_change_that_cannot_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    recipe = _write(tmp_path / "a.yaml")
    code, _, err = polysem(capsys, "train", recipe, "--out", tmp_path / "out", *words)
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()


def test_recipes_of_one_name_would_share_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [_write(tmp_path / place / "a.yaml") for place in ("one", "two")]
    code, _, err = polysem(capsys, "train", *recipes, "--out", tmp_path / "out")
    assert code == 2
    assert "same file name" in err
