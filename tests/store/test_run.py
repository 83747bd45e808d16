"""A run folder read back: what was written, in the words of the schema, or one clear sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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
