from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from drawn_run import PlainSource, random_activations, write_run
from shell import polysem

from polysem.analysis.facet_table import FACET_MEANINGS, UNIT_MEANINGS, facets
from polysem.errors import RunError, SpecError
from polysem.store.additions import add_arrays
from polysem.store.run import Run

N = 60


def embedded(run: Run, embeddings: np.ndarray) -> Run:
    values = embeddings.astype(np.float32)
    array = xr.DataArray(values, dims=("image", "dim"), attrs={"fingerprint": "0"})
    add_arrays(run, "embeddings", xr.Dataset({"embedding": array}))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two clear kinds of images; a unit of its own excites 3 of one kind and 3 of the other."""
    source = PlainSource("plain", [f"{i}.png" for i in range(N)])
    run = write_run(tmp_path / "run", source, random_activations(N), ranks=12)
    rng = np.random.default_rng(0)
    kinds = np.eye(2, 8)[np.arange(N) % 2]
    return embedded(run, kinds + 0.05 * rng.normal(size=(N, 8)))


def test_tables_agree_with_each_other_and_with_the_run(run: Run) -> None:
    units, parts = facets(run, sites="blocks.0.mlp.*", progress=False)
    assert list(units.columns) == list(UNIT_MEANINGS)
    assert list(parts.columns) == list(FACET_MEANINGS)
    pd.testing.assert_frame_equal(run.table("unit_facets"), units, check_dtype=False)
    stored = run.units("blocks.0.mlp.hook_post")
    keys = ["site", "unit", "tail"]
    for key, unit in units.set_index(keys).iterrows():
        mine = parts[(parts[keys] == list(key)).all(axis=1)]
        assert len(mine) == unit["facets"]
        if key[1] == 2:  # dead
            assert unit["facets"] == 0
            continue
        assert mine["exemplars"].sum() == unit["exemplars"] == 12
        assert mine["share"].sum() == pytest.approx(1)
        images = stored["top_image"].sel(tail=key[2]).to_numpy()[key[1]]
        for facet in mine.itertuples():
            assert images[facet.ranks[0]] == facet.best_image
        if unit["facets"] == 2:  # one facet for each kind of image
            for facet in mine.itertuples():
                assert len(set(images[facet.ranks] % 2)) == 1
    assert (units["facets"] == 2).sum() >= 6
    living = units[units["facets"] > 0]
    assert (living["effective_facets"] <= living["facets"] + 1e-9).all()


def test_crops_are_preferred(run: Run) -> None:
    site = "blocks.0.mlp.hook_post"
    dims = ("tail", "unit", "rank", "dim")
    stored = run.units(site)
    rng = np.random.default_rng(0)
    blob = rng.normal(size=(2, 5, 12, 3)).astype(np.float32)
    crops = xr.Dataset({"embedding": (dims, blob)}, coords={"tail": stored["tail"]})
    add_arrays(run, "crop_embeddings", {site: crops})
    units, _ = facets(run, sites=f"{site},hook_pooled", progress=False)
    assert units.groupby("site")["seen"].unique().map(list).to_dict() == {
        site: ["crops"],
        "hook_pooled": ["images"],
    }
    assert (units.loc[units["site"] == site, "facets"] <= 1).all()


def test_what_is_missing_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no site"):
        facets(run, sites="blocks.9.*", progress=False)
    source = PlainSource("plain", [f"{i}.png" for i in range(N)])
    bare = write_run(tmp_path / "bare", source, random_activations(N))
    with pytest.raises(RunError, match=r"no embeddings.*polysem embed"):
        facets(bare, progress=False)
    few = write_run(tmp_path / "few", source, random_activations(N), ranks=5)
    with pytest.raises(RunError, match="at most 5 exemplars"):
        facets(embedded(few, np.ones((N, 2))), progress=False)
    with pytest.raises(RunError, match="59 embeddings for 60 images"):
        facets(embedded(bare, np.ones((N - 1, 2))), progress=False)


def test_command_prints_a_summary(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = polysem(capsys, "facets", run.path, "--sites", "hook_pooled")
    assert code == 0, err
    assert "Facets of 14 living faces" in out
    assert (run.path / "tables" / "facets.parquet").is_file()
    code, _, err = polysem(capsys, "facets", run.path / "nowhere")
    assert code == 2
    assert "no run folder" in err
