"""What a probe has done so far, on disk: it goes on from here after it was killed at any moment.

::

    .NAME.partial/            beside the run's final place OUT/NAME
      probe.json              what is probed and how: only the same probe goes on
      process-0.lock          held by the living process, one each
      process-0/000000.npz    a segment: what belongs to single images, some batches of it
      process-0/000000.parquet
      process-0/state.npz     the statistics, and how many segments and images they stand for
      process-0/done          all of this process's share is in the state
      run/                    the run while it is put together

A segment counts once a state that knows of it has taken the place of the one before, by one
rename; what a killed process left behind beyond that is forgotten. Processes that share a probe
share the folder, so that on several machines it has to be on a drive that all of them see.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polysem.errors import PolysemError, RunError
from polysem.launch import Launch
from polysem.store.lock import Lock
from polysem.store.writer import IMAGES, check_free, disk_errors

__all__ = ["Arrays", "Journal", "Saved"]

Arrays = Mapping[str, np.ndarray]

#: Version of the journal's layout.
_FORMAT = 1

#: How long processes wait for one that has not begun or has ended early.
_ABSENCE_S = 600.0

_POLL_S = 0.2

#: Name of the entry of a state that holds all but arrays, as JSON.
_TOLD = "told"


@dataclass(frozen=True)
class Saved:
    """One process's share of a probe, as far as it has come.

    Attributes
    ----------
    arrays : mapping of str to array
        The statistics.
    facts : dict
        Whatever else the recorder wants to know again; plain values.
    """

    arrays: Arrays
    facts: dict[str, Any]


class Journal:
    """The journal of one process of a probe; use it as a context manager.

    Parameters
    ----------
    out : str or Path
        Where the run is to be.
    config : mapping
        What is probed and how, plain values by name. A journal of other values is refused.
    launch : Launch
        Which of the processes this is.
    overwrite : bool, default False
        Replace a run that is there already, and forget a journal of another probe.

    Attributes
    ----------
    committed : bool
        Whether anything is kept if this process ends now.

    Raises
    ------
    RunError
        If `out` is taken; the journal is in use, of another probe or damaged; the disk refuses.
    """

    def __init__(
        self,
        out: str | Path,
        config: Mapping[str, Any],
        launch: Launch | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out).expanduser()
        self.launch = launch or Launch()
        place = self.out.absolute()
        self.root = place.with_name(f".{place.name}.partial")
        self.overwrite = overwrite
        # as it comes back from JSON
        self.config = json.loads(
            json.dumps({"journal": _FORMAT, "processes": self.launch.count, **config})
        )
        self.committed = self._removed = False
        self._facts: dict[str, Any] = {}
        self._lock = Lock(self._lock_file(self.launch.number))
        self._segments = 0
        self._unsynced: list[Path] = []
        check_free(self.out, overwrite)

    @property
    def folder(self) -> Path:
        """Where this process's share is."""
        return self._folder(self.launch.number)

    @property
    def run_folder(self) -> Path:
        """Where the run is put together."""
        return self.root / "run"

    def __enter__(self) -> Journal:
        with disk_errors(self.out):
            try:
                if self.launch.first:
                    self._prepare()
                else:
                    self._join()
                self.folder.mkdir(exist_ok=True)
                self._segments, self._facts = self._told(self.launch.number)
            except BaseException:
                self._lock.release()
                raise
            self.committed = bool(self._segments)
            for file in self.folder.iterdir():
                if file.stem.isdecimal() and int(file.stem) >= self._segments:
                    file.unlink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, PolysemError) and self.committed:
            error.kept = (
                f"; {self._facts.get('n_images', 0):,} images are done and kept: the same "
                "command goes on from there"
            )
        if not (self.committed or self._removed):
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.launch.count == 1:
                shutil.rmtree(self.root, ignore_errors=True)
        self._lock.release()

    def add(self, rows: Mapping[str, Any], arrays: Arrays) -> None:
        """Write what belongs to some images; it counts from the next commit on.

        Parameters
        ----------
        rows : mapping
            Columns of images.parquet.
        arrays : mapping of str to array [image, ...]
        """
        with disk_errors(self.out):
            files = [self.folder / f"{self._segments:06d}{end}" for end in (".parquet", ".npz")]
            pq.write_table(pa.table(dict(rows), schema=IMAGES), files[0])
            _save(files[1], arrays)
            self._unsynced += files
            self._segments += 1

    def commit(self, arrays: Arrays, facts: Mapping[str, Any], *, done: bool = False) -> None:
        """Make the segments count, and these statistics with them.

        Parameters
        ----------
        arrays, facts
            As in `Saved`.
        done : bool, default False
            Whether this was all of the process's share.
        """
        with disk_errors(self.out):
            for file in self._unsynced:
                _sync(file)
            self._unsynced.clear()
            told = json.dumps({"segments": self._segments, "facts": dict(facts)}).encode()
            part, file = self.folder / "state.npz.part", self.folder / "state.npz"
            with part.open("wb") as stream:
                _save(stream, {_TOLD: np.frombuffer(told, np.uint8), **arrays})
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, file)
            _sync(self.folder)
            self._facts, self.committed = dict(facts), True
            if done:
                (self.folder / "done").touch()

    def restore(self) -> Saved | None:
        """Return what this process has committed, in this life or an earlier one."""
        return self._read(self.launch.number)

    def others(self) -> Iterator[Saved]:
        """Yield what each other process has committed, in their order, once it has done its share.

        Raises
        ------
        RunError
            If a process has ended before, or never began.
        """
        for number in range(1, self.launch.count):
            self._wait_for(number, (self._folder(number) / "done").exists)
            saved = self._read(number)
            assert saved is not None
            yield saved

    def segments(self) -> Iterator[tuple[pa.Table, Arrays]]:
        """Yield rows and arrays of all segments of all processes, in the order of the data."""
        for number in range(self.launch.count):
            own = number == self.launch.number
            for segment in range(self._segments if own else self._told(number)[0]):
                name = self._folder(number) / f"{segment:06d}"
                with disk_errors(self.out), np.load(f"{name}.npz") as arrays:
                    yield pq.read_table(f"{name}.parquet"), dict(arrays)

    def remove(self) -> None:
        """Take everything away, once the run is in its place."""
        gone = self.root.with_name(f"{self.root.name}-{uuid.uuid4().hex[:8]}")
        self._removed = True
        os.replace(self.root, gone)  # at once: the others see that all is done
        shutil.rmtree(gone, ignore_errors=True)

    def wait_for_the_run(self) -> None:
        """Wait until the first process has put the run in its place.

        Raises
        ------
        RunError
            If it has ended before.
        """
        self._wait_for(0, lambda: not self._config_file.exists(), patience=5)

    @property
    def _config_file(self) -> Path:
        return self.root / "probe.json"

    def _folder(self, number: int) -> Path:
        return self.root / f"process-{number}"

    def _lock_file(self, number: int) -> Path:
        return self.root / f"process-{number}.lock"

    def _prepare(self) -> None:
        """Open the journal of the same probe or begin a new one."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        old = self.run_folder.with_name("run-old")
        if old.is_dir() and not self.out.exists():  # killed between the last two renames
            os.replace(old, self.out)
            check_free(self.out, self.overwrite)
        before = self._read_config()
        if before == self.config:
            return
        if before is not None and self._anything_committed():
            differ = _differences(before, self.config)
            if not self.overwrite:
                raise RunError(
                    f"{self.root} holds an unfinished probe with other settings ({differ}); give "
                    "the same to go on, --overwrite to start anew, or another --out"
                )
        for lock in self.root.glob("process-*.lock"):
            if Lock(lock).taken_by_another and lock != self._lock.path:
                raise self._busy()
        for item in self.root.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item != self._lock.path:
                item.unlink()
        part = self.root / "probe.json.part"
        part.write_text(json.dumps(self.config, indent=2), encoding="utf-8")
        os.replace(part, self._config_file)

    def _join(self) -> None:
        """Wait for the first process to prepare the journal of this probe."""

        def same() -> bool:
            theirs = self._read_config()
            return theirs is not None and all(theirs.get(k) == v for k, v in self.config.items())

        self._wait_for(0, same)
        self._take_lock()

    def _take_lock(self) -> None:
        if not self._lock.take():
            raise self._busy()

    def _busy(self) -> RunError:
        return RunError(
            f"another probe is writing to {self.out} right now; wait for it, or name another --out"
        )

    def _read_config(self) -> dict[str, Any] | None:
        try:
            config = json.loads(self._config_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return config if isinstance(config, dict) else {}

    def _anything_committed(self) -> bool:
        return any(self.root.glob("process-*/state.npz"))

    def _told(self, number: int) -> tuple[int, dict[str, Any]]:
        """Return how many segments of a process count, and its facts."""
        with self._state(number) as kept:
            if kept is None:
                return 0, {}
            told = json.loads(kept[_TOLD].tobytes())
            return told["segments"], told["facts"]

    def _read(self, number: int) -> Saved | None:
        with self._state(number) as kept:
            if kept is None:
                return None
            arrays = {name: kept[name] for name in kept.files}
            return Saved(arrays, json.loads(arrays.pop(_TOLD).tobytes())["facts"])

    @contextmanager
    def _state(self, number: int) -> Iterator[Any]:
        file = self._folder(number) / "state.npz"
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
                yield kept
        except FileNotFoundError:
            yield None
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError):
            raise RunError(
                f"{file} is damaged, so this probe cannot go on; remove {self.root} to start anew"
            ) from None

    def _wait_for(
        self, number: int, happened: Callable[[], bool], *, patience: float | None = None
    ) -> None:
        """Wait while a process lives, and for so many seconds while it does not."""
        patience, seen = _ABSENCE_S if patience is None else patience, time.monotonic()
        while not happened():
            if Lock(self._lock_file(number)).taken_by_another:
                seen = time.monotonic()
            elif time.monotonic() - seen > patience:
                raise RunError(
                    f"process {number} of {self.launch.count} is not there (any more); start all "
                    "of them again"
                )
            time.sleep(_POLL_S)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [n for n in dict.fromkeys([*before, *now]) if before.get(n) != now.get(n)]
    return ", ".join(
        f"{n} {_short(before.get(n))} there, {_short(now.get(n))} here" for n in names[:3]
    ) + (", …" if len(names) > 3 else "")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:12]}…"


def _save(file: Path | IO[bytes], arrays: Arrays) -> None:
    named: Any = arrays
    np.savez(file, **named)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
