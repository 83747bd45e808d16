"""A probe that was ended, by whatever it was, goes on and gives the run of one that was not."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_probe import N, Noise, models
from torch import Tensor, nn

from polysem.data.folder import load_folder
from polysem.errors import DataError, MissingError, NonFiniteError, RunError
from polysem.probe.bench_faults import digest
from polysem.probe.probe import probe
from polysem.store import lock
from polysem.store.run import Run

BATCH = 8


class Ended(BaseException):
    """As sudden as a signal, for a test's own process."""


class Event(Noise):
    """Something happens while image number `at` is read."""

    def __init__(self, what: Callable[[], Any], at: int = 20) -> None:
        super().__init__()
        self.what, self.at = what, at

    def read(self, index: int) -> Image.Image:
        if index == self.at:
            self.what()
        return super().read(index)


def end() -> None:
    raise Ended


def run_of(data: Any, out: Path, **options: Any) -> Run:
    given: dict[str, Any] = {"batch_size": BATCH, "commit_every": 0, "sites": "*.hook_post"}
    return probe(models()["cls"](), data, out=out, **given | options)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)


@pytest.mark.parametrize("name", ["registers", "bcos", "cnn"])
def test_a_probe_goes_on_where_it_ended(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "batch_size": BATCH, "commit_every": 0, "pooled": True, "embed": "model", "bootstrap": 3,
        "patterns": "cnn" not in name, "smoothing": "cnn" not in name, "sample": 16, "top_k": 3,
    }  # fmt: skip
    whole = probe(models()[name](), Noise(broken=(3, 30)), out=tmp_path / "whole", **options)

    class Dying(Noise):
        def read(self, index: int) -> Image.Image:
            if index == last:
                raise Ended
            if index < first:
                raise AssertionError(f"image {index} was done")
            return super().read(index)

    first, last = 0, 20
    with pytest.raises(Ended):
        probe(models()[name](), Dying(broken=(3, 30)), out=tmp_path / "run", **options)
    assert leftovers(tmp_path) == [".run.partial", "whole"]
    first, last = 16, 35
    with pytest.raises(Ended):
        probe(models()[name](), Dying(broken=(3, 30)), out=tmp_path / "run", **options)
    first, last = 32, N
    run = probe(models()[name](), Dying(broken=(3, 30)), out=tmp_path / "run", **options)
    assert leftovers(tmp_path) == ["run", "whole"]
    assert [s["key"] for s in run.manifest["skipped"]] == ["noise/003", "noise/030"]
    assert digest(run.path) == digest(whole.path)


def test_only_the_same_probe_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Ended):
        run_of(Event(end), out, top_k=3)
    with pytest.raises(RunError, match=r"unfinished probe with other .*top_k 3 there, 4 here.*ov"):
        run_of(Noise(), out, top_k=4)
    other = Noise()
    other.fingerprint = "1" * 64
    with pytest.raises(RunError, match="fingerprint 000000000000… there, 111111111111… here"):
        run_of(other, out, top_k=3)
    anew = run_of(Noise(), out, top_k=4, overwrite=True)
    assert digest(anew.path) == digest(run_of(Noise(), tmp_path / "b", top_k=4).path)
    assert leftovers(tmp_path) == ["b", "run"]


def test_before_the_first_commit_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(Ended):
        run_of(Event(end), tmp_path / "run", commit_every=60)
    assert leftovers(tmp_path) == []


def test_two_probes_on_one_folder_refuse_each_other(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def second() -> None:
        for overwrite in (False, True):
            with pytest.raises(RunError, match=r"another probe is writing to .*run right now"):
                run_of(Noise(), out, overwrite=overwrite)

    run = run_of(Event(second), out)
    assert digest(run.path) == digest(run_of(Noise(), tmp_path / "b").path)


def test_a_full_disk_keeps_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        monkeypatch.setattr(np, "savez", full)

    def full(*_args: object, **_arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"is full; .*; 16 images are done and kept: the same com"):
        run_of(Event(fill), tmp_path / "run")
    monkeypatch.undo()
    run = run_of(Noise(), tmp_path / "run")
    assert digest(run.path) == digest(run_of(Noise(), tmp_path / "b").path)


@pytest.fixture
def small_drive(tmp_path: Path) -> Iterator[Path]:
    drive = tmp_path / "drive"
    drive.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(drive)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small drive")
    yield drive
    subprocess.run(["umount", str(drive)], check=True)


def test_a_drive_that_is_really_full(small_drive: Path, tmp_path: Path) -> None:
    hog = small_drive / "hog"

    def fill() -> None:
        with pytest.raises(OSError), hog.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with pytest.raises(RunError, match=r"disk of .*run is full.* 16 images are done and kept"):
        run_of(Event(fill), small_drive / "run")
    hog.unlink()
    run = run_of(Noise(), small_drive / "run")
    assert digest(run.path) == digest(run_of(Noise(), tmp_path / "b").path)


def test_a_drive_that_is_read_only(small_drive: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_drive)], check=True)
    with pytest.raises(RunError, match=r"run cannot be written: Read-only file system"):
        run_of(Noise(), small_drive / "run")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i in range(24):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Noise().read(i).save(folder / "ab"[i % 2] / f"{i:02d}.png")
    return folder


def test_data_that_vanish(photos: Path, tmp_path: Path) -> None:
    data = load_folder(photos, name="photos")
    read, away = data.read, tmp_path / "away"

    def taken_away(index: int) -> Image.Image:
        if index == 12 and photos.exists():
            os.replace(photos, away)
        return read(index)

    data.read = taken_away
    with pytest.raises(MissingError, match=r"photos was there .* but is gone; 8 images are done"):
        run_of(data, tmp_path / "run")
    os.replace(away, photos)
    run = run_of(load_folder(photos, name="photos"), tmp_path / "run")
    whole = run_of(load_folder(photos, name="photos"), tmp_path / "b")
    assert digest(run.path) == digest(whole.path)


def test_one_image_that_vanishes_is_left_out(photos: Path, tmp_path: Path) -> None:
    data = load_folder(photos, name="photos")
    _ = data.fingerprint
    (photos / data.files[5]).unlink()
    run = run_of(data, tmp_path / "run")
    assert "not there" in run.manifest["skipped"][0]["reason"]


def test_a_reading_process_that_dies(tmp_path: Path) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"reads images of noise was ended from outside") as caught:
        run_of(Event(die, at=36), tmp_path / "run", workers=1)
    assert "images are done and kept" in str(caught.value)
    run = run_of(Noise(), tmp_path / "run", workers=1)
    assert digest(run.path) == digest(run_of(Noise(), tmp_path / "b").path)


def test_a_burst_of_nan(tmp_path: Path) -> None:
    model = models()["cls"]()
    asked = 0

    def burst(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal asked
        asked += 1
        return (args[0] * torch.nan,) if asked == 3 else args

    handle = model.model.blocks[1].register_forward_pre_hook(burst)
    options: dict[str, Any] = {"batch_size": BATCH, "commit_every": 0, "sites": "*.hook_post"}
    with pytest.raises(NonFiniteError, match=r"NaN or infinite .*; 16 images are done and kept"):
        probe(model, Noise(), out=tmp_path / "run", **options)
    handle.remove()
    run = probe(model, Noise(), out=tmp_path / "run", **options)
    assert digest(run.path) == digest(run_of(Noise(), tmp_path / "b").path)


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    with pytest.raises(Ended):
        run_of(Event(end), tmp_path / "run")
    state = tmp_path / ".run.partial" / "process-0" / "state.npz"
    state.write_bytes(state.read_bytes()[:-500])
    with pytest.raises(RunError, match=r"state\.npz is damaged.* remove .*\.run\.partial"):
        run_of(Noise(), tmp_path / "run")


def test_a_run_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    run_of(Noise(), tmp_path / "run", top_k=2)
    with pytest.raises(Ended):
        run_of(Event(end), tmp_path / "run", overwrite=True)
    # killed between the two renames that put a run in the place of another
    os.replace(tmp_path / "run", tmp_path / ".run.partial" / "run-old")
    with pytest.raises(RunError, match="already holds a run"):
        run_of(Noise(), tmp_path / "run")
    assert Run.open(tmp_path / "run").manifest["options"]["top_k"] == 2
    assert run_of(Noise(), tmp_path / "run", overwrite=True).manifest["options"]["top_k"] == 16
