"""Names from the command line, with a CLIP model in open_clip's own folder layout."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pandas as pd
import pytest
import torch
from shell import polysem

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
