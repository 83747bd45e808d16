"""Which files are snapshots of one training, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from polysem.errors import CheckpointError, MissingError, NonFiniteError, PolysemError, SpecError
from polysem.models.checkpoint import save_checkpoint
from polysem.models.snapshots import find_snapshots
from polysem.models.transform import Transform

ARCH = "vit_micro_patch8_gap_64"
ARGS = {"img_size": 16, "depth": 1, "num_classes": 3, "embed_dim": 12, "num_heads": 3}


def save(path: Path, *, step: int | None = None, arch: str = ARCH, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    args = ARGS | changes
    transform = Transform(size=(16, 16), inverse=arch.startswith("bcos"))
    model = timm.create_model(arch, **args)
    save_checkpoint(path, arch, args, model.state_dict(), transform=transform, step=step)
    return path


def bare(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(timm.create_model(ARCH).state_dict(), path)
    return path


def test_checkpoints_that_say_their_step_are_ordered_by_it(tmp_path: Path) -> None:
    files = {step: save(tmp_path / name, step=step)
             for step, name in {20: "a.pt", 3: "b.safetensors", 100: "c9.pt"}.items()}  # fmt: skip
    found, by = find_snapshots(tmp_path / "*")
    assert by == "step"
    assert [s.step for s in found] == [3, 20, 100]
    assert [s.checkpoint for s in found] == [str(files[s]) for s in (3, 20, 100)]
    assert len({s.sha256 for s in found}) == 3
    again, _ = find_snapshots([str(tmp_path / "*.pt"), files[3], files[20]])  # each once
    assert again == found


def test_others_are_ordered_by_the_number_in_their_names(tmp_path: Path) -> None:
    for epoch in (2, 10, 1):
        bare(tmp_path / f"vit16_epoch_{epoch}" / "weights.pth")
    found, by = find_snapshots(f"{tmp_path}/*/weights.pth", arch=ARCH)
    assert by == "name"
    assert [s.step for s in found] == [1, 2, 10]
    save(tmp_path / "x_7.pt", step=70)
    save(tmp_path / "x_8.pt")  # one does not say: names decide, of all
    assert [s.step for s in find_snapshots(f"{tmp_path}/x_*.pt")[0]] == [7, 8]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a.pt", "b.pt"), "differ otherwise than in a number"),
        (("s_1.pt", "final.pt"), "differ otherwise than in a number"),
        (("run1_s2.pt", "run2_s3.pt"), "differ in more than one number"),
        (("s_1.pt", "s_01.pt"), "differ otherwise than in a number"),
    ],
)
def test_an_order_that_cannot_be_told(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in names:
        save(tmp_path / name)
    with pytest.raises(SpecError, match=said):
        find_snapshots(f"{tmp_path}/*.pt")


def test_two_snapshots_of_one_step(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", step=5)
    save(tmp_path / "b.pt", step=5)
    with pytest.raises(SpecError, match=r"a\.pt and .*b\.pt are both of step 5"):
        find_snapshots(f"{tmp_path}/*.pt")


def test_snapshots_of_different_networks_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "1.pt", step=1)
    for other, said in (
        ({"arch": "bcos_vit_micro_patch8_64"}, "it is a bcos_vit_micro_patch8_64, the other a vit"),
        ({"mlp_ratio": 2.0}, r"its units are others \(blocks.0.mlp.fc1.weight is \[24, 12\]"),
        ({"depth": 2}, r"its units are others \(blocks.1.* in the other not there\)"),
    ):
        save(tmp_path / "2.pt", step=2, **other)
        with pytest.raises(CheckpointError, match=said):
            find_snapshots(f"{tmp_path}/*.pt")


def test_none_one_or_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no checkpoint matches"):
        find_snapshots(f"{tmp_path}/*.pt")
    with pytest.raises(MissingError, match="no checkpoints are named"):
        find_snapshots([])
    save(tmp_path / "1.pt", step=1)
    with pytest.raises(SpecError, match="is the only snapshot"):
        find_snapshots(f"{tmp_path}/*.pt")
    (tmp_path / "2.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(PolysemError, match=r"2\.pt"):
        find_snapshots(f"{tmp_path}/*.pt")
    model = timm.create_model(ARCH, **ARGS)
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    save_checkpoint(
        tmp_path / "2.pt", ARCH, ARGS, model.state_dict(), transform=Transform(size=(16, 16)),
        step=2,
    )  # fmt: skip
    with pytest.raises(NonFiniteError):
        find_snapshots(f"{tmp_path}/*.pt")
