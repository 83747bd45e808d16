"""Facets are compared by what their own exemplars show; what a run may lack is said."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from drawn_run import Activations, PlainSource, write_run

from polysem.analysis.facet_features import facet_features
from polysem.analysis.facet_table import facets
from polysem.errors import RunError
from polysem.store.additions import add_arrays
from polysem.store.run import Run

N, KINDS, UNITS = 96, 6, 12


def two_sided_run(folder: Path) -> Run:
    """Each unit answers to two of six kinds of images; unit 7 is dead."""
    rng = np.random.default_rng(0)
    kind = np.arange(N) % KINDS
    first, second = np.arange(UNITS) % KINDS, (np.arange(UNITS) + 1 + np.arange(UNITS) // 6) % KINDS
    excited = (kind[:, None] == first) | (kind[:, None] == second)
    values = excited + 0.1 * rng.random((N, UNITS))
    values[:, 7] = 1
    source = PlainSource("plain", [str(i) for i in range(N)], kind, tuple("abcdef"))
    run = write_run(
        folder / "run", source, {"hook_pooled": Activations(values, signed=False)}, ranks=20
    )
    e = np.eye(KINDS, 16)[kind] + 0.03 * rng.normal(size=(N, 16)) + 0.5
    array = xr.DataArray(e.astype("f4"), dims=("image", "dim"), attrs={"fingerprint": "0"})
    add_arrays(run, "embeddings", xr.Dataset({"embedding": array}))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return two_sided_run(tmp_path)


def test_directions_are_those_of_the_exemplars_from_the_mean(run: Run) -> None:
    facets(run, progress=False)
    table, directions = facet_features(run)
    parts = run.table("facets")
    assert len(table) == len(parts) == 2 * (UNITS - 1)
    e = run.embeddings.to_numpy().astype(float)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    top = run.units("hook_pooled")["top_image"].sel(tail="upper").to_numpy()
    for row, direction in zip(parts.itertuples(), directions, strict=True):
        exact = e[top[row.unit, row.ranks].astype(int)].mean(0) - e.mean(0)
        np.testing.assert_allclose(direction, exact / np.linalg.norm(exact), atol=1e-5)


def test_what_all_crops_have_in_common_is_taken_out(run: Run) -> None:
    stored = run.units("hook_pooled")
    shape = *stored["top_image"].shape, 4
    crops = np.random.default_rng(0).normal(size=shape).astype("f4")
    crops[..., ::2, :] += 5
    crops += 100
    embedded = xr.Dataset(
        {"embedding": (("tail", "unit", "rank", "dim"), crops)}, coords={"tail": stored["tail"]}
    )
    facets(run, progress=False)
    add_arrays(run, "crop_embeddings", {"hook_pooled": embedded})
    with pytest.raises(RunError, match=r"found before its embeddings of crops .* polysem facets"):
        facet_features(run)
    facets(run, progress=False)
    table, directions = facet_features(run)
    kept = crops[0, np.arange(UNITS) != 7]
    parts = run.table("facets")
    assert len(table) == len(parts) > UNITS
    for row, direction in zip(parts.itertuples(), directions, strict=True):
        exact = crops[0, row.unit, row.ranks].astype(float).mean(0) - kept.mean((0, 1))
        np.testing.assert_allclose(direction, exact / np.linalg.norm(exact), atol=1e-3)


def test_what_is_missing_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no facets to group; make them with: polysem facets"):
        facet_features(run)
    source = PlainSource("plain", [str(i) for i in range(N)])
    rng = np.random.default_rng(0)
    sites = {f"blocks.{i}.mlp.hook_post": Activations(rng.normal(size=(N, 4))) for i in (0, 1)}
    two = write_run(tmp_path / "two", source, sites)
    array = xr.DataArray(rng.normal(size=(N, 3)).astype("f4"), dims=("image", "dim"))
    array.attrs = {"fingerprint": "0"}
    add_arrays(two, "embeddings", xr.Dataset({"embedding": array}))
    facets(two, sites="blocks.1.*", progress=False)
    assert set(facet_features(two)[0]["site"]) == {"blocks.1.mlp.hook_post"}
    with pytest.raises(RunError, match=r"no facets at blocks.0.mlp.hook_post; .* --sites"):
        facet_features(two, "blocks.*")
    crops = np.random.default_rng(0).normal(size=(2, 4, 8, 7)).astype("f4")
    arrays = {"embedding": (("tail", "unit", "rank", "dim"), crops)}
    arrays = xr.Dataset(arrays, coords={"tail": two.units("blocks.1.mlp.hook_post")["tail"]})
    add_arrays(two, "crop_embeddings", {"blocks.1.mlp.hook_post": arrays})
    facets(two, progress=False)
    with pytest.raises(RunError, match="embedded by encoders of other dimensions"):
        facet_features(two)
    assert len(facet_features(two, "blocks.1.*")[0])
