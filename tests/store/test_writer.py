"""Runs being written: whole or not there at all, and an older run safe until then."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.errors import RunError
from polysem.store import writer as writer_module
from polysem.store.run import Run
from polysem.store.writer import RunWriter, disk_errors

ROW = {"image": [0], "key": ["a"], "label": [None], "prediction": [2], "loss": [None],
       "correct": [None]}  # fmt: skip


def write(out: Path, note: str = "", *, overwrite: bool = False) -> None:
    with RunWriter(out, overwrite=overwrite) as writer:
        writer.add_images(ROW)
        assert overwrite or not (out / "manifest.json").exists()
        writer.finish({"note": note})


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_appears_whole_and_alone(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "run", "first")
    assert leftovers(tmp_path / "deep") == ["run"]
    run = Run.open(tmp_path / "deep" / "run")
    assert run.manifest["note"] == "first"
    assert run.images["label"].isna().all()
    assert list(run.images["prediction"]) == [2]


def test_unfinished_is_nothing(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.add_images(ROW)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing_and_the_older_run(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    write(tmp_path / "run", "older")
    with pytest.raises(kind), RunWriter(tmp_path / "run", overwrite=True) as writer:
        writer.add_images(ROW)
        writer.add_heads("output_norm", np.ones((1, 2, 3)))
        raise kind
    assert leftovers(tmp_path) == ["run"]
    assert Run.open(tmp_path / "run").manifest["note"] == "older"


def test_overwrite_replaces_all(tmp_path: Path) -> None:
    write(tmp_path / "run", "older")
    (tmp_path / "run" / "tables" / "mine.parquet").touch()
    with pytest.raises(RunError, match=r"already holds a run; .*--overwrite"):
        RunWriter(tmp_path / "run")
    write(tmp_path / "run", "newer", overwrite=True)
    assert Run.open(tmp_path / "run").manifest["note"] == "newer"
    assert leftovers(tmp_path) == ["run"]
    assert leftovers(tmp_path / "run" / "tables") == []


def test_the_older_run_returns_when_the_last_step_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "run", "older")
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if "partial" in str(source) and not str(source).endswith("-old"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(writer_module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "run", "newer", overwrite=True)
    assert Run.open(tmp_path / "run").manifest["note"] == "older"
    assert leftovers(tmp_path) == ["run"]


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="is a file"):
        RunWriter(tmp_path / "file", overwrite=True)
    with pytest.raises(RunError, match="something other than a run"):
        RunWriter(tmp_path / "photos", overwrite=True)
    write(tmp_path / "empty")
    assert leftovers(tmp_path) == ["empty", "file", "photos"]
    assert leftovers(tmp_path / "photos") == ["a.png"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    steps = {
        "images": lambda writer: writer.add_images(ROW),
        "manifest": lambda writer: writer.finish({}),
    }
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    monkeypatch.setattr(Path, "write_text", full)
    for step in steps.values():
        with (
            pytest.raises(RunError, match=r"disk of .*run is full"),
            RunWriter(tmp_path / "run") as writer,
        ):
            step(writer)
        assert leftovers(tmp_path) == []
    monkeypatch.setattr(pq, "ParquetWriter", full)
    with pytest.raises(RunError, match="full"), RunWriter(tmp_path / "run"):
        pass
    assert leftovers(tmp_path) == []


def test_only_what_a_disk_refuses_is_translated(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(BlockingIOError), disk_errors(tmp_path):
        raise BlockingIOError(errno.EAGAIN, "again")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_appended_rows_come_back_however_they_were_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    out = tmp_path_factory.mktemp("runs") / "run"
    values = np.random.default_rng(0).normal(size=(sum(cuts), 2, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "_CHUNK_BYTES", 4 * 6 * 4)  # four rows a chunk
        with RunWriter(out) as writer:
            start = 0
            for cut in cuts:
                writer.add_pooled("hook_pooled", values[start : start + cut])
                writer.add_heads("output_norm", values[start : start + cut].astype(np.float64))
                start += cut
            writer.write_units("hook_pooled", xr.Dataset({"dead": ("unit", [1.0, 2.0, 3.0])}))
            writer.write_heads(xr.Dataset(coords={"layer": [3, 5]}))
            writer.finish({"sites": {"hook_pooled": {}}})
    units = Run.open(out).units("hook_pooled")
    np.testing.assert_array_equal(units["pooled"], values)
    assert units["pooled"].dims == ("image", "pool", "unit")
    assert list(units["dead"].values) == [1, 2, 3]
    heads = Run.open(out).heads
    np.testing.assert_array_equal(heads["output_norm"].sel(layer=5), values[:, 1])


def test_names_in_any_script_are_kept(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.add_images(ROW | {"key": ["日本/naïve.png"]})
        writer.finish({"classes": ["日本"]})
    assert "日本" in (tmp_path / "run" / "manifest.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "manifest.json").read_bytes())["classes"] == ["日本"]
    assert Run.open(tmp_path / "run").images["key"][0] == "日本/naïve.png"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(RunError, match="gone/run cannot be written"):
        write(tmp_path / "gone" / "run")
    with pytest.raises(RunError, match="cannot be written: No such file"), disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
