"""The whole probe against brute force on full activations, and what it does with bad input."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
import xarray as xr
import zarr
from PIL import Image
from small_probe import VIT, N, Noise, loaded, models
from torch import Tensor, nn

import polysem
from polysem.data.dataset import ImageData
from polysem.data.shapes import Shapes
from polysem.data.subset import Subset
from polysem.errors import DataError, ImageError, NonFiniteError, RunError, SpecError
from polysem.models.load import LoadedModel, load_model
from polysem.models.transform import Transform
from polysem.probe.batches import batches
from polysem.probe.probe import probe
from polysem.sites import parse_site
from polysem.store.run import Run

BATCH = 8


def brute_force(model: LoadedModel, data: ImageData, site: str) -> dict[str, np.ndarray]:
    """Pooled activations [image, unit] and maps [image, unit, position] of all images.

    In the probe's batches: another size may round differently.
    """
    hooked = polysem.HookedVisionModel(model.model)
    seen: list[Tensor] = []
    with torch.inference_mode():
        for rows in torch.arange(len(data)).split(BATCH):
            pixels = torch.stack([model.transform(data.read(i)) for i in rows.tolist()])
            inputs = model.transform.normalize(pixels)
            seen.append(hooked.run_with_cache(inputs, names_filter=site)[1][site])
    activation = torch.cat(seen)
    dims = parse_site(site).dims
    if "head" in dims:
        activation = activation.norm(dim=-1)
    if "channel" in dims:
        activation = activation.flatten(2).transpose(1, 2)
    if activation.ndim == 2:
        return {"value": activation.numpy()}
    prefix = hooked.n_prefix_tokens
    patches = activation[:, prefix:].numpy()
    found = {
        "max": patches.max(1),
        "mean": patches.astype(np.float64).mean(1),
        "min": patches.min(1),
        "maps": patches.transpose(0, 2, 1),
    }
    return found | ({"cls": activation[:, 0].numpy()} if hooked.has_class_token else {})


@pytest.mark.parametrize("name", models())
def test_every_statistic_equals_brute_force(name: str, tmp_path: Path) -> None:
    model, data, k = models()[name](), Noise(), 5
    run = probe(model, data, out=tmp_path / "run", top_k=k, batch_size=BATCH, pooled=True)
    assert run.manifest["status"] == "complete"
    assert run.images["key"].tolist() == list(data.keys)
    for site in run.sites:
        units, exact = run.units(site).load(), brute_force(model, data, site)
        assert int(units["count"]) == N
        for pool in units["pool"].values:
            check_pool(units.sel(pool=pool), exact[str(pool)].astype(np.float64), data.labels)
        for tail in units["tail"].values:
            pool = "value" if "value" in exact else {"upper": "max", "lower": "min"}[str(tail)]
            rectified = not run.manifest["sites"][site]["signed"]
            check_tail(units.sel(tail=tail), exact, pool, rectified, k)


def check_pool(units: Any, exact: np.ndarray, labels: np.ndarray) -> None:
    # a mean over patches rounds with the order of summation; what follows is held to the values
    np.testing.assert_allclose(units["pooled"], exact, rtol=1e-5, atol=1e-5 * exact.std())
    exact = units["pooled"].values.astype(np.float64)
    varying = exact.min(0) != exact.max(0)
    spread = exact.std(0)[varying]

    def close(name: str, expected: np.ndarray) -> None:
        np.testing.assert_allclose(units[name], expected, rtol=1e-6, atol=1e-7 * spread.mean())

    close("mean", exact.mean(0))
    close("variance", exact.var(0))
    close("min", exact.min(0))
    close("max", exact.max(0))
    close("quantile", np.quantile(exact, units["q"], axis=0, method="inverted_cdf"))
    close("sample_value", exact)
    close("class_sum", np.stack([exact[labels == c].sum(0) for c in range(3)]))
    assert units["class_count"].values.tolist() == np.bincount(labels).tolist()
    np.testing.assert_allclose(
        units["skewness"][varying], scipy.stats.skew(exact[:, varying]), rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(
        units["kurtosis"][varying], scipy.stats.kurtosis(exact[:, varying]), rtol=1e-6, atol=1e-9
    )


def check_tail(
    units: Any, exact: dict[str, np.ndarray], pool: str, rectified: bool, k: int
) -> None:
    sign = 1 if units["tail"] == "upper" else -1
    values = sign * exact[pool]
    n_units = values.shape[1]
    order = np.lexsort((np.broadcast_to(np.arange(N)[:, None], values.shape), -values), axis=0)[:k]
    unit = np.arange(n_units)
    fires = values[order, unit] > 0 if rectified else np.ones((k, n_units), bool)
    images = np.where(fires, order, np.nan).T
    np.testing.assert_array_equal(units["top_image"], images)
    np.testing.assert_array_equal(units["n_exemplars"], fires.sum(0))
    np.testing.assert_array_equal(
        units["top_value"], np.where(fires, sign * values[order, unit], np.nan).T
    )
    if "maps" in exact:
        maps = exact["maps"][order, unit].transpose(1, 0, 2)  # [unit, rank, position]
        grid = units["top_map"].shape[2:]
        expected = np.where(fires.T[..., None], maps.astype(np.float16), np.nan)
        np.testing.assert_array_equal(units["top_map"], expected.reshape(n_units, k, *grid))
        peak = (sign * maps).argmax(-1)
        where = units["top_y"] * grid[1] + units["top_x"]
        np.testing.assert_array_equal(where, np.where(fires.T, peak, np.nan))


def test_heads_norms_and_patterns_of_every_image(tmp_path: Path) -> None:
    model, data = models()["cls"](), Noise()
    run = probe(model, data, out=tmp_path / "run", patterns=True, batch_size=BATCH)
    heads = run.heads
    assert dict(heads.sizes) == {"image": N, "layer": 2, "head": 3}
    for layer in range(2):
        exact = brute_force(model, data, f"blocks.{layer}.attn.hook_z")
        np.testing.assert_allclose(heads["output_norm"].sel(layer=layer), exact["mean"], rtol=1e-5)
    hooked = polysem.HookedVisionModel(model.model)
    pixels = torch.stack([model.transform(data.read(i)) for i in range(N)])
    with torch.no_grad():
        _, cache = hooked.run_with_cache(model.transform.normalize(pixels))
    pattern = cache["blocks.1.attn.hook_pattern"].double()
    entropy = -(pattern * pattern.log()).sum(-1).mean(-1)
    np.testing.assert_allclose(heads["pattern_entropy"].sel(layer=1), entropy, rtol=1e-4)


def test_results_do_not_depend_on_batches(tmp_path: Path) -> None:
    first = probe(models()["bcos"](), Noise(), out=tmp_path / "a", batch_size=5)
    second = probe(models()["bcos"](), Noise(), out=tmp_path / "b", batch_size=64)
    for site in first.sites:
        mine, theirs = first.units(site).load(), second.units(site).load()
        for name in ("mean", "variance", "quantile", "top_value", "class_sum"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_without_pooled_activations_arrays_do_not_grow_with_the_data(tmp_path: Path) -> None:
    runs = [
        probe(models()["cls"](), Noise(n), out=tmp_path / str(n), sample=8, top_k=4)
        for n in (16, 48)
    ]
    for site in runs[0].sites:
        small, large = (run.units(site) for run in runs)
        assert {v: small[v].shape for v in small} == {v: large[v].shape for v in large}


def test_unlabelled_and_mismatched_classes_leave_loss_empty(tmp_path: Path) -> None:
    unlabelled = probe(models()["cls"](), Noise(labelled=False), out=tmp_path / "a")
    assert unlabelled.images["label"].isna().all()
    assert unlabelled.images["correct"].isna().all()
    assert "class_sum" not in unlabelled.units("hook_pooled")
    other = probe(loaded("vit_tiny_patch16_224", num_classes=5, **VIT), Noise(), out=tmp_path / "b")
    assert other.images["loss"].isna().all()
    assert not other.images["label"].isna().any()
    assert "5 outputs" in other.manifest["notes"][0]


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    data = Noise(broken=(0, 7, 36))
    run = probe(models()["cls"](), data, out=tmp_path / "a", batch_size=8)
    assert run.manifest["n_images"] == N - 3
    assert [s["key"] for s in run.manifest["skipped"]] == ["noise/000", "noise/007", "noise/036"]
    assert run.images["image"].tolist() == [i for i in range(N) if i not in (0, 7, 36)]
    tops = run.units("hook_pooled")["top_image"].values
    assert not np.isin(tops[~np.isnan(tops)], (0, 7, 36)).any()
    with pytest.raises(ImageError, match="noise/000"):
        probe(models()["cls"](), data, out=tmp_path / "b", strict=True)
    with pytest.raises(DataError, match="none of the 37 images"):
        probe(models()["cls"](), Noise(broken=tuple(range(N))), out=tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_a_unit_that_never_fires_has_no_exemplars(tmp_path: Path) -> None:
    model = loaded("vit_tiny_patch16_224", act_layer=nn.ReLU, **VIT)
    fc1 = model.model.blocks[0].mlp.fc1
    with torch.no_grad():
        fc1.weight[4] = 0
        fc1.bias[4] = -1.0
    units = probe(model, Noise(), out=tmp_path / "run").units("blocks.0.mlp.hook_post")
    assert bool(units["dead"][4])
    assert int(units["n_exemplars"].sel(tail="upper")[4]) == 0
    assert np.isnan(units["top_image"].sel(tail="upper")[4]).all()
    assert not bool(units["dead"][5])


def test_not_finite_activations_stop_the_probe(tmp_path: Path) -> None:
    model = models()["cls"]()
    with torch.no_grad():
        model.model.blocks[1].mlp.fc1.bias[9] = torch.nan
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.mlp\.hook_post, unit 9 \(1 of 96"):
        probe(model, Noise(), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_the_way_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "run"
    probe(models()["cls"](), Noise(12), out=out)
    with pytest.raises(RunError, match="already holds a run"):
        probe(models()["cls"](), Noise(12), out=out)
    with pytest.raises(SpecError, match="no site of this model"):
        probe(models()["cls"](), Noise(20), out=out, sites="blocks.7.*", overwrite=True)
    assert Run.open(out).manifest["n_images"] == 12
    assert probe(models()["cls"](), Noise(20), out=out, overwrite=True).manifest["n_images"] == 20
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"")
    with pytest.raises(RunError, match="left alone"):
        probe(models()["cls"](), Noise(12), out=foreign, overwrite=True)
    assert [p.name for p in foreign.iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize("name", ["top_k", "sample", "batch_size"])
def test_options_below_one_are_refused(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(SpecError, match=f"{name} must be at least 1"):
        probe(models()["cls"](), Noise(), out=tmp_path / "run", **options)


def test_patterns_are_not_units(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="use --patterns"):
        probe(models()["cls"](), Noise(), out=tmp_path / "r", sites="*.hook_pattern")
    with pytest.raises(SpecError, match="no attention patterns"):
        probe(models()["cnn"](), Noise(), out=tmp_path / "r", patterns=True)


def test_the_run_opens_without_polysem(tmp_path: Path) -> None:
    run = probe(models()["bcos"](), Noise(), out=tmp_path / "run")
    group = zarr.open_group(run.path / "units.zarr", mode="r")["blocks.0.mlp.hook_post"]
    assert group["top_map"].metadata.dimension_names == ("tail", "unit", "rank", "y", "x")
    assert "exemplars" in group["top_value"].attrs["long_name"]


def test_workers_read_the_same_images() -> None:
    transform = Transform(size=(32, 32))
    alone = list(batches(Noise(broken=(3,)), transform, 8))
    shared = list(batches(Noise(broken=(3,)), transform, 8, workers=2))
    assert [d.indices for d in alone] == [d.indices for d in shared]
    for mine, theirs in zip(alone, shared, strict=True):
        assert torch.equal(mine.pixels, theirs.pixels)
    assert shared[0].skipped[0].key == "noise/003"


def test_the_package_is_the_function(tmp_path: Path) -> None:
    run = polysem.probe(models()["cls"](), Noise(4), out=tmp_path / "run", sites="hook_pooled")
    assert run.sites == ["hook_pooled"]


class Pressing(Noise):
    """Presses Ctrl-C while image 20 is read."""

    def read(self, index: int) -> Image.Image:
        if index == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return super().read(index)


def test_an_interrupted_probe_keeps_what_was_done(tmp_path: Path) -> None:
    run = probe(models()["cls"](), Pressing(), out=tmp_path / "run", batch_size=BATCH)
    assert run.manifest["status"] == "interrupted"
    assert run.manifest["n_images"] == 3 * BATCH == len(run.images)
    assert int(run.units("hook_pooled")["count"]) == 3 * BATCH
    whole = probe(models()["cls"](), Noise(3 * BATCH), out=tmp_path / "b", batch_size=BATCH)
    for name in ("mean", "top_value", "quantile"):
        np.testing.assert_array_equal(
            run.units("hook_pooled")[name], whole.units("hook_pooled")[name]
        )


@pytest.mark.parametrize("method", ["write_table", "to_zarr", "append"])
def test_a_full_disk_leaves_nothing_and_keeps_the_old_run(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe(models()["cls"](), Noise(12), out=tmp_path / "run")

    def full(*_args: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = {"write_table": pq.ParquetWriter, "to_zarr": xr.Dataset, "append": zarr.Array}[method]
    monkeypatch.setattr(owner, method, full)
    with pytest.raises(RunError, match="is full"):
        probe(models()["cls"](), Noise(20), out=tmp_path / "run", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert Run.open(tmp_path / "run").manifest["n_images"] == 12


def test_what_images_show_is_kept_where_data_says_so(tmp_path: Path) -> None:
    data = Shapes("test", n=6, size=32)
    loaded = load_model("timm:vit_micro_patch8_gap_64")
    run = probe(
        loaded, Subset(data, np.array([1, 2, 4])), out=tmp_path / "run", sites="hook_pooled",
        progress=False,
    )  # fmt: skip
    shown = run.table("shown")
    assert shown["image"].tolist() == run.images["image"].tolist() == [0, 1, 2]
    assert list(shown.columns[1:]) == list(data.concepts)
    np.testing.assert_array_equal(shown.iloc[:, 1:], data.concept_matrix()[[1, 2, 4]])
