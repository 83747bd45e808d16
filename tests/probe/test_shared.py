"""Two processes probe what one probes: order-free statistics to the bit, sums to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from small_probe import N, Noise, models
from together import together

from polysem.data.shipped import shipped_file
from polysem.errors import MissingError, RunError, SpecError
from polysem.launch import Launch, launched
from polysem.probe.embed import embed
from polysem.probe.heads import heads
from polysem.probe.probe import probe
from polysem.store import journal
from polysem.store.run import Run

DATA = "shapes:test?n=90&size=32"

#: Sums of floats, and what is computed of them; all else is the same to the bit.
SUMS = {
    "mean", "variance", "skewness", "kurtosis", "sparsity", "class_sum", "centroid",
    "monosemanticity", "replicate_mean", "replicate_monosemanticity", "replicate_class_mean",
}  # fmt: skip


def same(one: xr.Dataset, two: xr.Dataset) -> None:
    assert set(one) == set(two)
    for name in one:
        if name in SUMS:
            tolerance = 1e-4 if "monosemanticity" in str(name) or name == "centroid" else 1e-9
            np.testing.assert_allclose(one[name], two[name], rtol=tolerance, atol=1e-7)
        else:
            np.testing.assert_array_equal(one[name], two[name])


def test_two_processes_probe_what_one_probes(tmp_path: Path) -> None:
    model = shipped_file("models", "cifar10_cpu_bcos.safetensors")
    words = ["--batch-size", 16, "--pooled", "--patterns", "--smoothing", "--embed", "model",
             "--bootstrap", 3, "--sample", 40, "--device", "cpu"]  # fmt: skip
    said = together("probe", "--model", model, "--data", DATA, "--out", tmp_path / "two", *words)
    assert "90 images" in said[0]
    assert said[1] == ""
    options: dict[str, Any] = {
        "batch_size": 16, "pooled": True, "patterns": True, "smoothing": True, "embed": "model",
        "bootstrap": 3, "sample": 40,
    }  # fmt: skip
    one = probe(model, DATA, out=tmp_path / "one", **options)
    two = Run.open(tmp_path / "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    assert two.manifest["processes"] == 2
    assert one.sites == two.sites
    pd.testing.assert_frame_equal(one.images, two.images, check_exact=True)
    pd.testing.assert_frame_equal(one.table("shown"), two.table("shown"))
    xr.testing.assert_equal(one.heads.load(), two.heads.load())
    np.testing.assert_array_equal(one.embeddings, two.embeddings)
    for site in one.sites:
        same(one.units(site).load(), two.units(site).load())
    for name in ("units", "smoothing"):
        pd.testing.assert_frame_equal(one.table(name), two.table(name), rtol=1e-6)


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_all_of_it_once_and_even(n: int, count: int) -> None:
    shares = [Launch(number, count).share(n) for number in range(count)]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("wrong", [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_a_senseless_launch_is_refused(
    wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match="RANK"):
        launched()


def test_processes_do_not_wait_for_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_ABSENCE_S", 0.2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number in (1, 0):
        monkeypatch.setenv("RANK", str(number))
        with pytest.raises(RunError, match=f"process {1 - number} of 2 is not there"):
            probe(models()["cls"](), Noise(), out=tmp_path / "run", batch_size=8)
    # the first has done its share, which is kept; the other comes later, on its own
    monkeypatch.setattr(journal, "_ABSENCE_S", 60)
    monkeypatch.setenv("RANK", "1")
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "wait_for_the_run", lambda self: None)
        with pytest.raises(MissingError, match="21 images are done and kept"):
            probe(models()["cls"](), Noise(), out=tmp_path / "run", batch_size=8)
    monkeypatch.setenv("RANK", "0")
    run = probe(models()["cls"](), Noise(), out=tmp_path / "run", batch_size=8)
    assert run.images["image"].tolist() == list(range(N))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_more_processes_than_batches(tmp_path: Path) -> None:
    words = ["--model", shipped_file("models", "cifar10_cpu_vit.safetensors"), "--data",
             "shapes:test?n=9&size=32", "--out", tmp_path / "run", "--device", "cpu"]  # fmt: skip
    together("probe", *words)
    assert Run.open(tmp_path / "run").manifest["n_images"] == 9


def test_two_processes_embed_what_one_embeds(tmp_path: Path) -> None:
    model = shipped_file("models", "cifar10_cpu_vit.safetensors")
    run = probe(model, "shapes:test?n=40&size=32", out=tmp_path / "run", sites="hook_pooled")
    said = together("embed", run.path, "--device", "cpu", "--batch-size", 8)
    assert "embedded, 40 images" in said[0]
    assert said[1] == ""
    together_ = run.embeddings.to_numpy()
    assert list(embed(run, batch_size=8, overwrite=True).values()) == ["embedded"]
    np.testing.assert_array_equal(run.embeddings, together_)


def test_two_processes_study_the_heads_that_one_studies(tmp_path: Path) -> None:
    model = shipped_file("models", "cifar10_cpu_vit.safetensors")
    data = "shapes:test?n=9&size=32"
    words = ["--model", model, "--data", data, "--limit", 6, "--exact-pairs", 2, "--draws", 1,
             "--batch-size", 2, "--device", "cpu", "--no-pictures"]  # fmt: skip
    said = together("heads", *words, "--out", tmp_path / "two")
    assert "wrote" in said[0]
    assert said[1] == ""
    assert [p.name for p in tmp_path.iterdir()] == ["two"]
    one = heads(
        model, data, out=tmp_path / "one", limit=6, exact_pairs=2, draws=1, batch_size=2
    ).gates  # fmt: skip
    xr.testing.assert_equal(one.load(), Run.open(tmp_path / "two").gates.load())


def test_what_cannot_be_shared_is_done_once(tmp_path: Path) -> None:
    said = together("polysemanticity", probe(models()["cls"](), Noise(), out=tmp_path / "run").path)
    assert said[0]
    assert said[1] == ""
