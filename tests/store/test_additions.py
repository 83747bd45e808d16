from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from polysem.errors import RunError
from polysem.store.additions import add_arrays, add_table
from polysem.store.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, {"format": 1, "sites": {}})


def test_a_table_comes_back_with_the_meaning_of_its_columns(run: Run) -> None:
    table = pd.DataFrame({"site": ["a", "a"], "unit": [0, 1], "score": [0.5, np.nan]})
    meanings = {"site": "site", "unit": "index", "score": "a score, 0 to 1 (arXiv 0000.00000)"}
    for _ in range(2):  # the second takes the place of the first
        file = add_table(run, "scores", table, meanings=meanings)
    back = run.table("scores")
    pd.testing.assert_frame_equal(back, table)
    assert back.attrs["columns"] == meanings
    assert [each.name for each in file.parent.iterdir()] == ["scores.parquet"]


def test_an_unexplained_column_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match=r"'scores' differ in \['unit'\]"):
        add_table(run, "scores", pd.DataFrame({"unit": [0]}), meanings={})
    assert not (run.path / "tables").exists()


def test_arrays_replace_older_ones_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = xr.Dataset({"gate": ("head", np.arange(3.0), {"long_name": "a gate"})})
    store = add_arrays(run, "gates", first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xr.Dataset, "to_zarr", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            add_arrays(run, "gates", first + 1)
    kept = xr.open_zarr(store, consolidated=False)
    np.testing.assert_array_equal(kept.gate, [0, 1, 2])
    assert kept.gate.attrs["long_name"] == "a gate"
    add_arrays(run, "gates", first + 1)
    np.testing.assert_array_equal(xr.open_zarr(store, consolidated=False).gate, [1, 2, 3])
    assert [each.name for each in run.path.iterdir()] == ["gates.zarr"]


def _interrupted(self: xr.Dataset, *args: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_groups_of_an_older_store_stay_where_they_are_wanted(run: Run) -> None:
    def ones(value: float) -> xr.Dataset:
        return xr.Dataset({"map": ("unit", np.full(2, value), {"long_name": "a map"})})

    add_arrays(run, "maps", {"a": ones(1), "b.c": ones(2)})
    store = add_arrays(run, "maps", {"b.c": ones(3), "d": ones(4)}, keep=True)
    for group, value in (("a", 1), ("b.c", 3), ("d", 4)):
        found = xr.open_zarr(store, group=group, consolidated=False)
        np.testing.assert_array_equal(found["map"], [value] * 2)
    add_arrays(run, "maps", {"d": ones(5)})
    assert [path.name for path in store.iterdir() if path.is_dir()] == ["d"]


def test_nothing_is_written_where_a_link_leads(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    for name in ("tables", "new.zarr"):
        (run.path / name).symlink_to(outside)
    arrays = xr.Dataset({"a": ("unit", [1.0])})
    with pytest.raises(RunError, match="leads out of the run"):
        add_table(run, "new", pd.DataFrame({"unit": [1]}), meanings={"unit": "number"})
    with pytest.raises(RunError, match="leads out of the run"):
        add_arrays(run, "new", arrays)
    with pytest.raises(RunError, match="leads out of the run"):
        add_arrays(run, "other", {"../../outside": arrays})
    assert not list(outside.iterdir())
