"""A run folder read back: what was written, in the words of the schema, or one clear sentence."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from drawn_run import PlainSource, cnn_activations, random_activations, unit_statistics, write_run

from polysem.errors import MissingError, RunError, SpecError
from polysem.store.run import Run
from polysem.store.schema import FORMAT, OLDEST_FORMAT

N = 11
LABELS = np.arange(N) % 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = PlainSource("photos", [f"{i}.png" for i in range(N)], LABELS, ("a", "b", "c"))
    activations = random_activations(N - 1)
    path = tmp_path_factory.mktemp("runs") / "a"
    predictions = np.delete(LABELS, 4)
    write_run(path, source, activations, skipped=[4], predictions=predictions, patterns=True)
    return path


def test_what_was_written_is_read(folder: Path) -> None:
    run = Run.open(str(folder))
    assert run.sites == list(random_activations(2))
    assert run.classes == ["a", "b", "c"]
    assert list(run.images["image"]) == [i for i in range(N) if i != 4]
    assert list(run.images["key"])[4] == "5.png"
    assert run.images["correct"].all()
    activations = random_activations(N - 1)
    for site in run.sites:
        expected = unit_statistics(
            site, activations[site], np.delete(np.arange(N), 4), labels=np.delete(LABELS, 4),
            n_classes=3,
        )  # fmt: skip
        units = run.units(site).load()
        assert set(units.variables) == set(expected.variables)
        for name, variable in expected.variables.items():
            assert units[name].dims == variable.dims
            np.testing.assert_array_equal(units[name].astype(variable.dtype), variable)
            assert units[name].attrs == variable.attrs


def test_heads_have_layers(folder: Path) -> None:
    heads = Run.open(folder).heads
    assert set(heads) == {"output_norm", "pattern_entropy", "pattern_distance"}
    assert heads["output_norm"].dims == ("image", "layer", "head")
    assert list(heads["layer"].values) == [0]
    shown = random_activations(N - 1)["blocks.0.attn.hook_z"].values.mean((2, 3))
    np.testing.assert_allclose(heads["output_norm"].sel(layer=0), shown, rtol=1e-6)


def test_the_folder_can_be_read_without_polysem(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == FORMAT
    site = next(iter(manifest["sites"]))
    units = xr.open_zarr(folder / "units.zarr", group=site, consolidated=False, chunks=None)
    assert units["top_value"].sel(tail="upper").dims == ("unit", "rank")
    assert len(pd.read_parquet(folder / "images.parquet")) == N - 1
    assert set(pd.read_parquet(folder / "tables" / "units.parquet")["site"]) == set(
        manifest["sites"]
    )


def test_repr_says_what_was_run_on_what(folder: Path) -> None:
    text = repr(Run.open(folder))
    assert "bcos_vit_test on 10 images of photos, 4 sites, complete" in text


def test_unknown_names_get_near_matches(folder: Path) -> None:
    run = Run.open(folder)
    with pytest.raises(SpecError, match=r"did you mean 'blocks\.0\.mlp\.hook_post'"):
        run.units("blocks.0.mlp.hook_pots")
    with pytest.raises(SpecError, match=r"it has blocks\.0\.mlp\.hook_post, "):
        run.units("what")
    with pytest.raises(SpecError, match="did you mean 'units'"):
        run.table("unit")


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no run folder at .*nowhere"):
        Run.open(tmp_path / "nowhere")
    for text in ("", "[1]", "{}", '{"format": "one"}', "{"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(RunError, match="is not a run"):
            Run.open(tmp_path)


@pytest.mark.parametrize("versions", [{"polysem": "0.0.1"}, {}, None, []])
def test_an_older_format_says_which_polysem_it_needs(versions: Any, tmp_path: Path) -> None:
    older = {"format": OLDEST_FORMAT - 1, "versions": versions}
    (tmp_path / "manifest.json").write_text(json.dumps(older))
    words = r"polysem 0\.0\.1, or probe" if versions else "as old as the run, or probe again"
    with pytest.raises(RunError, match=words):
        Run.open(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    newer = {"format": FORMAT + 1, "versions": {"polysem": "9.9"}}
    (tmp_path / "manifest.json").write_text(json.dumps(newer))
    with pytest.raises(RunError, match=rf"format {FORMAT + 1}.*install polysem 9\.9"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("damage", "read"),
    [
        (lambda run: (run / "images.parquet").unlink(), lambda run: run.images),
        (lambda run: (run / "images.parquet").write_bytes(b"PAR1 no more"), lambda run: run.images),
        (lambda run: (run / "tables" / "units.parquet").write_bytes(b""),
         lambda run: run.table("units")),
        (lambda run: (run / "units.zarr").rename(run / "elsewhere"),
         lambda run: run.units("layer1.0.hook_post")),
        (lambda run: (run / "units.zarr" / "layer1.0.hook_post").rename(run / "elsewhere"),
         lambda run: run.units("layer1.0.hook_post")),
        (lambda run: (run / "units.zarr" / "layer1.0.hook_post" / "zarr.json").write_text("{"),
         lambda run: run.units("layer1.0.hook_post")),
        (lambda run: None, lambda run: run.heads),
    ],
    ids=["no images", "bad images", "bad table", "no units", "no site", "bad site", "no heads"],
)  # fmt: skip
def test_damage_is_one_sentence(tmp_path: Path, damage, read) -> None:  # type: ignore[no-untyped-def]
    source = PlainSource("photos", [f"{i}.png" for i in range(4)])
    run = write_run(tmp_path / "run", source, cnn_activations(4))
    damage(run.path)
    with pytest.raises(RunError, match=r"run.*(probe|damaged|incomplete)"):
        read(run)


SITE = "layer1.0.hook_post"


def small_run(tmp_path: Path) -> Run:
    source = PlainSource("photos", [f"{i}.png" for i in range(6)])
    return write_run(tmp_path / "run", source, cnn_activations(6))


def change_json(file: Path, **entries: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_damage_that_shows_when_values_are_read_is_one_sentence(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    (chunk,) = (run.path / "units.zarr" / SITE / "mean" / "c").rglob("0/0")
    chunk.write_bytes(chunk.read_bytes()[:-3])
    units = run.units(SITE)
    assert units["max"].isel(pool=0, unit=[0, 2]).shape == (2,)
    with pytest.raises(RunError, match="mean is damaged; probe again"):
        units["mean"].load()


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("mean", {"shape": [2, 10**12]}),
        ("pool", {"shape": [10**12], "chunk_grid": {
            "name": "regular", "configuration": {"chunk_shape": [10**12]}}}),
        ("mean", {"dimension_names": ["unit", "pool"]}),
        ("mean", {"shape": "large"}),
        ("mean", {"codecs": [{"name": "pickle", "configuration": {}}]}),
    ],
)  # fmt: skip
def test_arrays_that_declare_what_they_are_not(tmp_path: Path, name: str, entries) -> None:  # type: ignore[no-untyped-def]
    run = small_run(tmp_path)
    change_json(run.path / "units.zarr" / SITE / name / "zarr.json", **entries)
    with pytest.raises(RunError, match="damaged"):
        run.units(SITE)


def test_labels_of_axes_are_those_that_are_known(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    xr.Dataset(coords={"tail": np.array(["left"], object)}).to_zarr(
        run.path / "units.zarr", group=SITE, mode="a", zarr_format=3, consolidated=False
    )
    with pytest.raises(RunError, match="axis tail has other labels than upper, lower"):
        run.units(SITE)


def test_nothing_in_arrays_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of zarr's format 2 may name pickle as a filter, which older numcodecs then runs."""
    numcodecs = pytest.importorskip("numcodecs")
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    run = small_run(tmp_path)

    class Canary:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "canary"),)

    store = run.path / "embeddings.zarr"
    array = store / "embedding"
    array.mkdir(parents=True)
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    (array / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["image"]}')
    described = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "order": "C",
        "fill_value": None, "compressor": None, "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}],
    }  # fmt: skip
    (array / ".zarray").write_text(json.dumps(described))
    (array / "0").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(RunError, match="missing or damaged"):
        run.embeddings.load()
    assert not (tmp_path / "canary").exists()


def test_tables_are_held_against_their_columns_and_bytes(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    pd.DataFrame({"image": [1], "key": ["a"]}).to_parquet(run.path / "images.parquet")
    with pytest.raises(RunError, match="column 'label' is missing or of another type"):
        _ = run.images
    units = run.path / "tables" / "units.parquet"
    pd.read_parquet(units).assign(dead="no").to_parquet(units)
    with pytest.raises(RunError, match="column 'dead' is missing or of another type"):
        run.table("units")
    pq.write_table(pa.table({"site": pa.nulls(200_000_000)}), run.path / "tables" / "x.parquet")
    with pytest.raises(RunError, match="it declares 200,000,000 rows"):
        run.table("x")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"n_images": "many"}, "n_images is 'many'"),
        ({"n_images": 10**30}, "n_images is"),
        ({"model": []}, "model is"),
        ({"model": {"name": 3}}, r"model\.name is '3'"),
        ({"data": {"classes": ["a", None]}}, r"data\.classes is"),
        ({"skipped": [{"key": 1}]}, "skipped is"),
        ({"sites": {"../../../escape": {}}}, "not the name of a site"),
        ({"sites": {"a/../../b.hook_post": {}}}, "not the name of a site"),
        ({"sites": {"hook_pooled": {"tails": ["lower"]}}}, "tails is"),
        ({"sites": {"hook_pooled": 3}}, "no mapping"),
    ],
)
def test_a_manifest_of_other_types_is_damaged(tmp_path: Path, entries, message: str) -> None:  # type: ignore[no-untyped-def]
    run = small_run(tmp_path)
    change_json(run.path / "manifest.json", **entries)
    with pytest.raises(RunError, match=message):
        Run.open(run.path)


def test_what_a_manifest_lacks_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    change_json(run.path / "manifest.json", model={})
    with pytest.raises(RunError, match="says nothing of 'name'; probe again"):
        repr(Run.open(run.path))
