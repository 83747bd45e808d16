"""Names from the command line, with a CLIP model in open_clip's own folder layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pandas as pd
import pytest
import torch
from shell import polysem

from polysem.describe.facet_labels import FACET_LABELS
from polysem.describe.labels import LABELS
from polysem.store.run import Run

SMALL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    words = ["--model", "timm:vit_micro_patch8_gap_64", "--data", "shapes:test?n=60&size=64"]
    code, _, err = polysem(
        capsys, "probe", *words, "--sites", "hook_pooled,blocks.0.mlp.hook_post",
        "--out", tmp_path / "run", "--pooled",
    )  # fmt: skip
    assert (code, err) == (0, "")
    return tmp_path / "run"


def test_units_are_named_and_the_table_kept(
    run: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("describe-neurons", run, "--clip", clip, "--concepts", "shapes", "--draws", 50)
    code, out, err = polysem(capsys, *words, "--sites", "hook_pooled", "--top", 2)
    assert (code, err) == (0, "")
    assert "have a fitting name among 157 concepts" in out
    table = Run.open(run).table("labels")
    assert list(table.columns) == list(LABELS)
    assert table.attrs["columns"] == LABELS
    assert table.attrs["made_by"] == {"clip": str(clip), "vocabulary": "shapes"}
    assert set(table["site"]) == {"hook_pooled"}
    assert len(pd.read_csv(run / "tables" / "labels.csv")) == len(table)
    embedded = run / "clip_embeddings.zarr" / "embedding" / "zarr.json"
    written = embedded.stat().st_mtime_ns
    code, _, err = polysem(capsys, *words, "--method", "auroc")  # no image is embedded again
    assert (code, err) == (0, "")
    assert embedded.stat().st_mtime_ns == written
    assert set(Run.open(run).table("labels")["site"]) == {"hook_pooled", "blocks.0.mlp.hook_post"}


def test_what_cannot_be_done_is_said_and_the_older_table_stays(
    run: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ("describe-neurons", run, "--clip", clip, "--concepts", "shapes", "--draws", 20)
    assert polysem(capsys, *good, "--sites", "hook_pooled")[0] == 0
    kept = (run / "tables" / "labels.parquet").read_bytes()
    (tmp_path / "empty.txt").write_text("\n")
    for words, sentence in [
        (("--concepts", tmp_path / "empty.txt"), "holds no concept"),
        (("--clip", "ViT-B-32"), "needs weights"),
        (("--method", "magic"), "there is no method 'magic'"),
        (("--sites", "blocks.9.*"), "matches 'blocks.9.*'"),
    ]:
        code, _, err = polysem(capsys, *good, *words)
        assert code == 2
        assert err.startswith("polysem: ")
        assert sentence in err
        assert err.count("\n") == 1
    assert (run / "tables" / "labels.parquet").read_bytes() == kept


def test_what_cannot_name_a_unit_is_said(
    run: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text("circle\n")
    words = ("describe-neurons", run, "--clip", clip, "--draws", 10, "--seen", "images")
    code, out, err = polysem(capsys, *words, "--concepts", tmp_path / "one.txt")
    assert (code, err) == (0, "")
    assert "note: soft-wpmi weighs concepts against each other" in out
    assert "have a fitting name among 1 concept," in out
    assert "note: 10 draws give no p below 0.091" in out
    assert "Named units" not in out


def test_crops_facets_heads_and_sheets_in_one_command(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "timm:vit_micro_patch8_gap_64", "--data", "shapes:test?n=40&size=64"]
    sites = ("blocks.0.hook_mlp_out", "blocks.0.attn.hook_z")
    code, _, err = polysem(
        capsys, "probe", *words, "--sites", ",".join(sites), "--out", tmp_path / "run",
        "--top-k", 8,
    )  # fmt: skip
    assert (code, err) == (0, "")
    run = Run.open(tmp_path / "run")
    asked = ("--clip", clip, "--concepts", "shapes", "--draws", 50, "--facets", "--heads")
    code, out, err = polysem(capsys, "describe-neurons", run.path, *asked, "--rate", 1)
    assert (code, err) == (0, "")
    assert set(run.table("labels")["seen"]) == {"crops"}
    facets = run.table("facets").set_index(["site", "unit", "tail", "facet"])
    named = run.table("facet_labels").query("rank == 1").set_index(facets.index.names)
    assert set(named.index) == set(facets.index)
    assert run.table("facet_labels").attrs["columns"] == FACET_LABELS
    assert set(run.table("head_labels")["by"]) == {"norm"}
    text = (run.path / "tables" / "labels.md").read_text(encoding="utf-8")
    assert r"## blocks.0.hook\_mlp\_out" in text and "## Attention heads" in text
    for table in ("labels", "facet_labels", "head_labels"):
        assert len(pd.read_csv(run.path / "tables" / f"{table}.csv")) == len(run.table(table))
    code, out, err = polysem(
        capsys, "describe-neurons", run.path, "--clip", clip, "--concepts", "shapes", "--draws", 20,
        "--sites", sites[1], "--rate", 1, "--sheets", tmp_path / "sheets",
    )  # fmt: skip
    assert (code, err) == (0, "")
    n_heads = run.units(sites[1]).sizes["unit"]
    assert len(list((tmp_path / "sheets").glob("*.png"))) == n_heads
    assert f"wrote {n_heads} contact sheets" in out
    code, _, err = polysem(capsys, "describe-neurons", run.path, *asked, "--method", "auroc")
    assert code == 2 and "a facet is a group of exemplars" in err


def test_a_neighbour_on_the_same_images_gives_its_embeddings(
    run: Path, clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--clip", clip, "--concepts", "shapes", "--draws", 20, "--sites", "hook_pooled")
    shutil.copytree(run, run.with_name("other"))
    assert polysem(capsys, "describe-neurons", run, *words)[0] == 0
    monkeypatch.setattr("polysem.describe.embedded.embed_images", None)  # would fail if asked
    assert polysem(capsys, "describe-neurons", run.with_name("other"), *words)[0] == 0
    one, other = (Run.open(path).clip_embeddings for path in (run, run.with_name("other")))
    assert (one == other).all() and one.attrs == other.attrs
