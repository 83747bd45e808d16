"""Checkpoints of B-cosified networks say what they are, and load like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from polysem.errors import CheckpointError, SpecError
from polysem.models.bcos import add_inverse
from polysem.models.bcosify_checkpoint import bcosify_checkpoint
from polysem.models.checkpoint import read_checkpoint, save_checkpoint
from polysem.models.load import load_model
from polysem.models.transform import Transform

ARCH = "vit_micro_patch8_gap_64"
ARGS: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
TRANSFORM = Transform(size=(64, 64), crop_pct=0.9, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
CLASSES = ("a", "b", "c", "d", "e")


def saved(folder: Path, suffix: str = ".safetensors", **options: Any) -> Path:
    path = folder / f"plain{suffix}"
    torch.manual_seed(0)
    model = timm.create_model(ARCH, **{**ARGS, **options})
    save_checkpoint(
        path, ARCH, {**ARGS, **options}, model.state_dict(), transform=TRANSFORM, classes=CLASSES
    )
    return path


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_it_loads_as_what_it_is(tmp_path: Path, suffix: str, share: float) -> None:
    plain = load_model(saved(tmp_path, suffix))
    out = tmp_path / f"deep/er/made{suffix}"
    result = bcosify_checkpoint(tmp_path / f"plain{suffix}", out, share=share)
    made = load_model(out)
    assert (made.name, made.classes) == ("bcosified", CLASSES)
    assert made.transform == Transform(size=(64, 64), crop_pct=0.9, inverse=True)
    model: Any = made.model
    assert model.conversion.share == share
    assert result.base == ARCH and result.path == out
    assert result.parameters == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        before = plain.model(plain.transform.normalize(pixels()))
        after = model(made.transform.normalize(pixels()))
    assert torch.allclose(before, after, atol=1e-5) == (share == 0)
    assert (result.difference < 1e-5) == (share == 0)
    assert made.info["recipe"]["bcosified"]["sha256"] == plain.sha256


def test_half_converted_weights_in_float16_keep_their_share(tmp_path: Path) -> None:
    bcosify_checkpoint(saved(tmp_path), tmp_path / "a.safetensors", share=0.5)
    read = read_checkpoint(tmp_path / "a.safetensors")
    half = tmp_path / "half.safetensors"
    save_checkpoint(
        half, read.model_name, read.model_args, read.state_dict, transform=read.transform,
        dtype="float16",
    )  # fmt: skip
    model: Any = load_model(half).model
    assert model.conversion.share == 0.5


def test_options_of_the_architecture_are_kept(tmp_path: Path) -> None:
    path = saved(tmp_path, positions="learn", img_size=32)
    bcosify_checkpoint(path, tmp_path / "a.safetensors")
    model: Any = load_model(tmp_path / "a.safetensors").model
    assert model.pos_embed.shape == (1, 16, 24)


def test_models_of_the_registry_and_bare_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet20_32", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    for spec, options in (
        ("timm:resnet20_32", {"weights": tmp_path / "bare.pt"}),
        (tmp_path / "bare.pt", {"arch": "resnet20_32"}),
    ):
        out = tmp_path / "made.safetensors"
        result = bcosify_checkpoint(spec, out, overwrite=True, **options)  # type: ignore[arg-type]
        made = load_model(out)
        assert result.base == "resnet20_32"
        x = torch.rand(2, 3, 32, 32)
        mean, std = (torch.tensor(model.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
        with torch.no_grad():
            expected = model.eval()((x - mean) / std)
            torch.testing.assert_close(made.model(add_inverse(x)), expected, rtol=0, atol=1e-5)


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    plain, out = saved(tmp_path), tmp_path / "made.safetensors"
    out.write_text("mine")
    with pytest.raises(CheckpointError, match="there already"):
        bcosify_checkpoint(plain, out)
    assert out.read_text() == "mine"
    bcosify_checkpoint(plain, out, overwrite=True)
    assert load_model(out).name == "bcosified"


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must end in"):
        bcosify_checkpoint(saved(tmp_path), tmp_path / "made.onnx")


def test_a_model_that_its_name_does_not_give_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polysem.models import bcosify_checkpoint as home

    plain = load_model(saved(tmp_path))
    monkeypatch.setattr(home, "load_model", lambda *_args, **_options: plain)
    monkeypatch.setattr(home, "_arguments", lambda *_: {"depth": 3, "num_classes": 5})
    with pytest.raises(SpecError, match="could not be built again"):
        bcosify_checkpoint("spec", tmp_path / "made.safetensors")
    assert not (tmp_path / "made.safetensors").exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"base": "bcosified"}, "base=NAME"),
        ({"base": ""}, "base=NAME"),
        ({"base": "vit_micro_patch8_gap_46"}, "vit_micro_patch8_gap_64"),
        ({"base": "hf-hub:somebody/model"}, "timm has no model"),
        ({"base": "bcos_vit_micro_patch8_64"}, "6 channels"),
        ({"std": [1, 0, 1]}, "positive"),
        ({"mean": [1]}, "3 colours"),
        ({"b": 0}, "at least 1"),
        ({"pretrained": True}, "pretrained"),
        ({"cache_dir": "/tmp/x"}, "cache_dir"),
        ({"depth": "deep"}, "cannot be built"),
        ({"wheels": 4}, "cannot be built"),
    ],
    ids=str,
)
def test_no_checkpoint_makes_it_build_anything_else(
    tmp_path: Path, wrong: dict[str, Any], named: str
) -> None:
    bcosify_checkpoint(saved(tmp_path), tmp_path / "made.safetensors")
    read = read_checkpoint(tmp_path / "made.safetensors")
    altered = tmp_path / "altered.safetensors"
    args = {**read.model_args, **wrong}
    save_checkpoint(altered, "bcosified", args, read.state_dict, transform=read.transform)
    with pytest.raises(CheckpointError, match=named):
        load_model(altered)
