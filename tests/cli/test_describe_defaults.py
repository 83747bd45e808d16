"""describe-neurons without --clip: drawn shapes need no network, photographs a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
from shell import polysem

from polysem.data.shapes import Shapes
from polysem.data.shipped import shipped_file
from polysem.store.run import Run


def _probe(capsys: pytest.CaptureFixture[str], data: str | Path, out: Path) -> Path:
    words = ("probe", "--model", "timm:vit_micro_patch8_gap_64", "--data", data)
    code, _, err = polysem(capsys, *words, "--sites", "hook_pooled", "--out", out, "--pooled")
    assert (code, err) == (0, "")
    return out


def test_drawn_shapes_are_named_by_the_clip_that_ships(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _probe(capsys, "shapes:test?n=60&size=64", tmp_path / "run")
    code, out, err = polysem(capsys, "describe-neurons", run, "--draws", 20)
    assert (code, err) == (0, "")
    assert "among 157 concepts" in out
    assert "knows nothing of" not in out
    made_by = Run.open(run).clip_embeddings.attrs["encoder"]
    assert str(shipped_file("models", "shapes_clip")) in made_by


def test_photographs_are_not_left_to_it_unsaid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Shapes("test", n=40)
    for number in range(40):
        place = tmp_path / "photos" / ("a", "b")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        data.read(number).save(place)
    run = _probe(capsys, tmp_path / "photos", tmp_path / "run")
    words = ("describe-neurons", run, "--concepts", "shapes", "--draws", 20)
    code, out, err = polysem(capsys, *words, "--clip", shipped_file("models", "shapes_clip"))
    assert (code, err) == (0, "")
    assert "note: " in out
    assert "knows nothing of" in out

    import open_clip

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_network)
    code, _, err = polysem(capsys, *words)
    assert code == 2
    assert err.startswith("polysem: ViT-B-32:laion2b_s34b_b79k could not be loaded")
    assert "name the file: ViT-B-32:FILE" in err
    assert err.count("\n") == 1
