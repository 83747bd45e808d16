"""``polysem explain`` as its user meets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from shell import polysem as run

from polysem.models.checkpoint import save_checkpoint
from polysem.models.transform import Transform
from polysem.store.run import Run

DATA = "shapes:test?n=4&size=32"
ARGS = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code, _, err = run(capsys, "explain", *words)
    assert code == 2 and err.startswith("polysem: ") and err.count("\n") == 1
    return err


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    arch = "bcos_vit_micro_patch8_64"
    model = timm.create_model(arch, **ARGS)
    path = tmp_path / "ckpt.safetensors"
    transform = Transform(size=(32, 32), inverse=True)
    save_checkpoint(
        path, arch, ARGS, model.state_dict(), transform=transform, classes=("a", "b", "c")
    )
    return path


def test_images_and_data(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    out = tmp_path / "why"
    code, said, err = run(
        capsys, "explain", "--model", checkpoint, "--image", photo, "--out", out, "--method",
        "bcos,gradcam,rollout", "--ground", "black", "--smooth", 3,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "explained 1 images by 3 methods" in said and f"wrote {out}" in said
    assert {p.name for p in out.iterdir()} == {
        "overview.png", "images", "maps.npz", "index.csv", "explain.json",
    }  # fmt: skip
    assert pd.read_csv(out / "index.csv")["key"].tolist() == [str(photo)] * 3

    words = ["--model", checkpoint, "--data", DATA, "--out", out, "--method", "bcos"]
    assert "already holds explanations" in refused(capsys, *words)
    target = "blocks.1.mlp.hook_post:3:lower"
    code, said, err = run(
        capsys, "explain", *words, "--target", target, "--limit", 3, "--overwrite"
    )
    assert (code, err) == (0, "") and "make up each value" in said
    index = pd.read_csv(out / "index.csv")
    assert index["target"].tolist() == [target] * 3 and index["error"].abs().max() < 1e-5


def test_a_run(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    code, _, _ = run(
        capsys, "probe", "--model", checkpoint, "--data", DATA, "--out", folder, "--top-k", 2
    )
    assert code == 0
    words = ["--run", folder, "--model", checkpoint, "--sites", "blocks.1.attn.hook_z"]
    code, said, err = run(capsys, "explain", *words, "--exemplars", 1)
    assert (code, err) == (0, "") and "contributions.zarr" in said
    assert Run.open(folder).contributions("blocks.1.attn.hook_z").sizes["rank"] == 1
    words = ["--run", folder, "--model", checkpoint, "--upstream"]
    code, said, err = run(capsys, "explain", *words)
    assert (code, err) == (0, "") and "polysem facets" in said
    assert Run.open(folder).upstream("blocks.1.mlp.hook_post").sizes["rank"] == 2
    assert "makes none" in refused(capsys, *words, "--cells", 2)
    assert "cannot be traced" in refused(capsys, *words, "--sites", "*.attn.*")
    assert "holds 3 images" in refused(capsys, *words, "--data", "shapes:test?n=3&size=32")
    assert "other weights" in refused(
        capsys, "--run", folder, "--model", "timm:bcos_vit_micro_patch8_64"
    )


def test_bad_requests_get_a_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = ("--model", checkpoint), ("--out", tmp_path / "why")
    data = ("--data", DATA)
    for words, message in (
        ((*model, *out), "say what to explain"),
        ((*model, *out, *data, "--image", "x.png"), "say what to explain"),
        ((*model, *data), "say where to write"),
        ((*model, *data, *out, "--sites", "x"), "belong to --run"),
        ((*model, *data, *out, "--upstream"), "belong to --run"),
        ((*model, *out, "--run", "r"), "leave --out, --target out"),
        ((*model, *data, *out, "--target", "d"), "there is no class 'd'"),
        ((*model, *data, *out, "--target", "blocks.1.mlp.hook_post:99"), "has no unit 99"),
        ((*model, *data, *out, "--method", "gradcm"), "did you mean 'gradcam'"),
        (("--model", "timm:resnet20_32", *data, *out, "--method", "rollout"), "has none"),
        ((*model, "--image", tmp_path / "x.png", *out), "there is no image file"),
        ((*model, *data, *out, "--smooth", 2), "odd, not 2"),
    ):
        assert message in refused(capsys, *words)
    assert not (tmp_path / "why").exists()
