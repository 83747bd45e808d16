"""``polysem circuits`` as its user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest
import timm
import torch
from shell import polysem as run

from polysem.models.checkpoint import save_checkpoint
from polysem.models.transform import Transform
from polysem.store.run import Run

DATA = "shapes:test?n=12&size=32"
ARGS = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}
ARCHS = {"bcos": "bcos_vit_micro_patch8_64", "vit": "vit_micro_patch8_gap_64"}


def checkpoint(kind: str, path: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(ARCHS[kind], **ARGS)
    transform = Transform(size=(32, 32), inverse=kind == "bcos")
    save_checkpoint(
        path, ARCHS[kind], ARGS, model.state_dict(), transform=transform, classes=("a", "b", "c")
    )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("circuits")
    ckpt = checkpoint("bcos", folder / "ckpt.safetensors")
    import polysem

    polysem.probe(str(ckpt), DATA, out=folder / "run", top_k=4, device="cpu", progress=False)
    return ckpt, folder / "run"


def test_every_unit_then_clusters(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, folder = made
    words = ("circuits", folder, "--model", ckpt, "--exemplars", 1, "--check", 3)
    code, said, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "What makes units fire" in said and "Contributions against ablation" in said
    opened = Run.open(folder)
    table, check = opened.table("edges"), opened.table("edge_check")
    assert f"{len(table):,} edges are in" in said and table["ablation"].notna().sum() == 3
    assert check["method"].eq("bcos").all() and not (folder / "circuits").exists()
    assert run(capsys, "embed", folder, "--device", "cpu")[0] == 0
    code, _, err = run(capsys, "clusters", folder, "--sites", "*.mlp.*", "--min-size", 5)
    assert (code, err) == (0, "")
    code, said, err = run(capsys, *words)
    assert (code, err) == (0, "") and (folder / "circuits" / "clusters.png").is_file()
    fed = opened.table("cluster_edges")
    assert fed.groupby("cluster")["share"].sum().to_numpy() == pytest.approx(1)
    code, said, err = run(capsys, "circuits", folder, "--model", ckpt, "--cluster", 0)
    assert (code, err) == (0, "") and said.startswith("cluster 0: ")


def test_one_circuit(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    ckpt, folder = made
    predicted = int(Run.open(folder).images["prediction"].mode().iloc[0])
    code, said, err = run(
        capsys, "circuits", folder, "--model", ckpt, "--class", "abc"[predicted], "--nodes", 2
    )
    assert (code, err) == (0, "")
    assert "explain" in said and f"class_{predicted}.png, .json and .graphml" in said
    stem = folder / "circuits" / f"class_{predicted}"
    assert stem.with_suffix(".png").is_file()
    facts = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))["graph"]
    parts = [facts[part] for part in ("kept", "others", "image", "rest")]
    assert sum(parts) == pytest.approx(1, abs=1e-5) and facts["rest"] == pytest.approx(0, abs=1e-5)
    assert nx.read_graphml(stem.with_suffix(".graphml")).graph["method"] == "bcos"


def test_bad_input_is_one_sentence(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, folder = made
    other = checkpoint("vit", tmp_path / "other.safetensors")
    before = sorted(folder.rglob("*"))
    for words, said in (
        (("--model", other, "--class", "a"), "was probed with other weights"),
        (("--model", "timm:resnet20_32"), "was probed with other weights"),
        (("--model", tmp_path / "none.pt"), "none.pt"),
        (("--model", ckpt, "--class", "d"), "there is no class 'd'"),
        (("--model", ckpt, "--unit", "blocks.9.mlp.hook_post:0"), "no site"),
        (("--model", ckpt, "--unit", "blocks.0.mlp.hook_post:1"), "no traced site lies before"),
        (("--model", ckpt, "--unit", "hook_pooled:24"), "has no unit 24"),
        (("--model", ckpt, "--cluster", 99), "cluster"),
        (("--model", ckpt, "--facet", 0), "--facet belongs to --unit"),
        (("--model", ckpt, "--sites", "layer1.*"), "no site of this model matches"),
        (("--model", ckpt, "--class", "a", "--unit", "hook_pooled:1"), "leads to one thing"),
    ):
        code, _, err = run(capsys, "circuits", folder, *words)
        assert code == 2 and err.startswith("polysem: ") and err.count("\n") == 1, err
        assert said in err, err
    code, _, err = run(capsys, "circuits", tmp_path / "nothing", "--model", ckpt)
    assert code == 2 and "no run folder" in err
    assert sorted(folder.rglob("*")) == before
