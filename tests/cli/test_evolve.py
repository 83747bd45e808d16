"""``polysem evolve`` as a user gets it, on drawn shapes and small networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import timm
import torch
from shell import polysem

import polysem as package
from polysem.models.checkpoint import save_checkpoint
from polysem.models.transform import Transform
from polysem.probe import snapshots as at_work
from polysem.store.evolution import Evolution

ARCH = "vit_micro_patch8_gap_64"
ARGS = {"img_size": 32, "depth": 1, "num_classes": 8, "embed_dim": 12, "num_heads": 3}
DATA = "shapes:test?n=48&size=32"
MLP = "blocks.0.mlp.hook_post"
SITES = ("--sites", f"{MLP},hook_pooled", "--device", "cpu")


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    found: dict[str, torch.Tensor] = timm.create_model(ARCH, **ARGS).state_dict()
    return {
        name: value + 0.2 * torch.randn(value.shape) if value.is_floating_point() else value
        for name, value in found.items()
    }


def permuted(weights: dict[str, torch.Tensor], order: list[int]) -> dict[str, torch.Tensor]:
    """The same function, its MLP's neurons in another order."""
    found = dict(weights)
    for name in ("fc1.weight", "fc1.bias"):
        found[f"blocks.0.mlp.{name}"] = weights[f"blocks.0.mlp.{name}"][order]
    found["blocks.0.mlp.fc2.weight"] = weights["blocks.0.mlp.fc2.weight"][:, order]
    return found


def save(path: Path, weights: dict[str, torch.Tensor], step: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, ARCH, ARGS, weights, transform=Transform(size=(32, 32)), step=step)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, then the final network permuted and perturbed, then the final network."""
    folder, final = tmp_path_factory.mktemp("snapshots"), state(1)
    n_units = len(final["blocks.0.mlp.fc1.bias"])
    order = np.random.default_rng(0).permutation(n_units).tolist()
    torch.manual_seed(2)
    noisy = {
        name: value * (1 + 1e-3 * torch.randn(value.shape)) if value.is_floating_point() else value
        for name, value in permuted(final, order).items()
    }
    save(folder / "0.pt", state(0), 0)
    save(folder / "5.pt", noisy, 5)
    save(folder / "20.pt", final, 20)
    (folder / "order.json").write_text(json.dumps(order))
    return f"{folder}/*.pt"


def test_a_permuted_network_is_matched_back(
    snapshots: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("evolve", "--checkpoints", snapshots, "--data", DATA, "--out", out, *SITES)
    code, printed, err = polysem(capsys, *words, "--follow", "match", "--unit", f"{MLP}:3")
    assert (code, err) == (0, "")
    assert f"{MLP}: 48 units" in printed and "a run for each of 3 snapshots" in printed
    evolution = Evolution.open(out)
    assert evolution.steps == [0, 5, 20]
    order = json.loads((Path(snapshots).parent / "order.json").read_text())
    table = evolution.table("trajectories")
    here = table[(table["site"] == MLP) & (table["step"] == 5) & ~table["dead"]]
    assert len(here) > 40
    assert [order[j] for j in here["matched_unit"]] == here["unit"].tolist()
    assert here["matched_correlation"].min() > 0.999
    assert evolution.table("layers").query("step == 5")["cka_final"].min() > 0.99
    born = evolution.table("births")
    steps = born.loc[born["site"] == MLP, "birth_correlation"].dropna()
    assert (steps == 5).mean() > 0.9  # of random weights some unit is near by chance
    pictures = {path.name for path in (out / "pictures").iterdir()}
    # 48 images are too few for labels above chance
    assert {"scores.png", "layers.png", f"unit_{MLP}_3.png"} == pictures - {"labels.png"}
    for name in ("trajectories", "births", "layers"):
        assert len(pd.read_csv(out / "tables" / f"{name}.csv")) == len(evolution.table(name))
    facts = evolution.manifest
    assert facts["units_shown"] == [
        {"site": MLP, "unit": 3, "picture": f"pictures/unit_{MLP}_3.png"}
    ]
    assert facts["labels"]["source"] == "classes" and facts["ordered_by"] == "step"
    code, printed, err = polysem(capsys, "show", out / "step_5")  # a run like any other
    assert (code, err) == (0, "")


def test_python_resume_and_overwrite(snapshots: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"out": out, "sites": "hook_pooled", "device": "cpu", "progress": False}
    first = package.evolve(snapshots, DATA, **options)
    before = first.table("trajectories")
    shutil.rmtree(out / "step_0")  # as if it had been interrupted before
    (out / "evolution.json").write_text(
        json.dumps(first.manifest | {"evolution": 1, "status": "running"})
    )
    kept = {step: (out / f"step_{step}" / "manifest.json").stat().st_mtime_ns for step in (5, 20)}
    again = package.evolve(snapshots, DATA, resume=True, **options)
    pd.testing.assert_frame_equal(again.table("trajectories"), before)
    for step, written in kept.items():
        assert (out / f"step_{step}" / "manifest.json").stat().st_mtime_ns == written
    (out / "notes.txt").touch()
    fewer = sorted(Path(snapshots).parent.glob("[25]*.pt"))
    renewed = package.evolve(fewer, DATA, overwrite=True, embed=None, **options)
    assert renewed.steps == [5, 20] and renewed.manifest["embedding"] is None
    assert not (out / "step_0").exists() and (out / "notes.txt").exists()
    assert renewed.table("trajectories")["ms"].isna().all()


def test_units_are_named_by_a_vision_language_model(
    snapshots: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8,
                       "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2,
                     "layers": 1},
    }  # fmt: skip
    clip, out = tmp_path / "clip", tmp_path / "out"
    clip.mkdir()
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": small}))
    torch.save(open_clip.CLIP(**small).state_dict(), clip / "open_clip_pytorch_model.bin")
    words = ("evolve", "--checkpoints", snapshots, "--data", DATA, "--out", out, "--device", "cpu")
    code, _, err = polysem(
        capsys, *words, "--sites", "hook_pooled", "--clip", clip, "--concepts", "shapes"
    )
    assert (code, err) == (0, "")
    evolution = Evolution.open(out)
    assert evolution.manifest["labels"] == {
        "source": "concepts", "clip": str(clip), "vocabulary": "shapes",
    }  # fmt: skip
    first, last = (evolution.run(step).clip_embeddings.to_numpy() for step in (0, 20))
    assert np.array_equal(first, last)
    names = evolution.run(20).table("labels")
    named = names[(names["rank"] == 1) & names["named"]].set_index(["unit", "tail"])["concept"]
    table = evolution.table("trajectories").query("step == 20").set_index(["unit", "tail"])
    assert table["label"].dropna().to_dict() == named.to_dict()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--checkpoints": "nothing/*.pt"}, "no checkpoint matches"),
        ({"--checkpoints": "20.pt"}, "is the only snapshot"),
        ({"--sites": "blocks.9.*"}, "matches 'blocks.9.*'"),
        ({"--data": "nowhere"}, "nowhere"),
        ({"--embed": "magic"}, "no encoder 'magic'"),
        ({"--clip": "ViT-B-32"}, "needs weights"),
        ({"--unit": "hook_pooled"}, "should be a site and a unit"),
        ({"--unit": "hook_pooled:99"}, "has no unit 99"),
        (
            {"--unit": "hook_poold:1"},
            "no recorded site 'hook_poold'; did you mean 'hook_pooled'",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    snapshots: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    said: str,
) -> None:
    words = {"--checkpoints": snapshots, "--data": DATA, "--device": "cpu"} | changes
    if words["--checkpoints"] == "20.pt":
        words["--checkpoints"] = str(Path(snapshots).parent / "20.pt")
    out = tmp_path / "out"
    code, _, err = polysem(capsys, "evolve", *sum(words.items(), ()), "--out", out)
    assert code == 2
    assert err.startswith("polysem: ") and said in err and err.count("\n") == 1
    assert not out.exists()


def test_an_older_result_survives_bad_input(
    snapshots: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("evolve", "--data", DATA, "--out", out, "--sites", "hook_pooled", "--device", "cpu")
    assert polysem(capsys, *words, "--checkpoints", snapshots)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    broken, weights = tmp_path / "broken", state(3)
    save(broken / "1.pt", weights, 1)
    weights["blocks.0.mlp.fc1.weight"] = weights["blocks.0.mlp.fc1.weight"] + 3e38
    save(broken / "2.pt", weights, 2)
    for more, said in (
        ((), "already holds a result"),
        (("--overwrite", "--checkpoints", f"{broken}/*.pt"), "NaN or infinite activations"),
        (("--overwrite", "--resume"), "exclude each other"),
    ):
        given = more if "--checkpoints" in more else (*more, "--checkpoints", snapshots)
        code, _, err = polysem(capsys, *words, *given)
        assert code == 2 and said in err and err.count("\n") == 1
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_ctrl_c_keeps_finished_snapshots(
    snapshots: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = ("evolve", "--checkpoints", snapshots, "--data", DATA, "--out", out,
             "--sites", "hook_pooled", "--device", "cpu")  # fmt: skip
    record = at_work.record

    def stopping_at(name: str) -> None:
        def stopped(*args: Any, task: str, **options: Any) -> tuple[bool, float]:
            return task == name, record(*args, task=task, **options)[1]

        monkeypatch.setattr(at_work, "record", stopped)

    stopping_at("step 20")  # the first to be probed
    code, _, err = polysem(capsys, *words)
    assert code == 2 and "interrupted before the first snapshot was probed" in err
    assert not out.exists()
    stopping_at("step 5")
    code, printed, err = polysem(capsys, *words)
    assert code == 130 and "go on with --resume" in printed
    assert {path.name for path in out.iterdir()} == {"evolution.json", "step_0", "step_20"}
    code, _, err = polysem(capsys, *words)
    assert code == 2 and "is not finished; go on with --resume" in err
    monkeypatch.undo()
    code, _, err = polysem(capsys, *words, "--resume")
    assert (code, err) == (0, "")
    assert Evolution.open(out).steps == [0, 5, 20]
