"""A folder of evolution opened for reading: one run for each snapshot, and tables over time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from polysem.errors import MissingError, RunError, SpecError, did_you_mean
from polysem.store.guarded import read_parquet
from polysem.store.run import Run
from polysem.store.writer import disk_errors

__all__ = [
    "EVOLUTION_FORMAT",
    "Evolution",
    "check_evolution",
    "clear_evolution",
    "read_evolution",
    "write_evolution",
]

#: Version of the folder's layout; raised when older readers would misread it.
EVOLUTION_FORMAT = 1


class Evolution:
    """How the units of one network came to be, from snapshots of its training.

    Open it with `Evolution.open`.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : dict
        Steps, model, data, where labels come from, options, versions, status.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> Evolution:
        """Open a folder that `polysem evolve` has finished.

        Raises
        ------
        MissingError
            If there is no such folder.
        RunError
            If it is something else, unfinished, or was written by a newer polysem.
        """
        path = Path(path).expanduser()
        manifest = read_evolution(path)
        if manifest["evolution"] > EVOLUTION_FORMAT:
            raise RunError(
                f"{path} has evolution format {manifest['evolution']}; this polysem reads up to "
                f"{EVOLUTION_FORMAT}: install a newer one"
            )
        if manifest["status"] != "complete":
            raise RunError(f"{path} is not finished; go on with: polysem evolve … --resume")
        return cls(path, manifest)

    @property
    def steps(self) -> list[int]:
        """Training steps of the snapshots, ascending."""
        return [int(each["step"]) for each in self.manifest["steps"]]

    def run(self, step: int) -> Run:
        """Return the run of the snapshot of a step.

        Raises
        ------
        SpecError
            If there is no such snapshot.
        RunError
            If its run is gone.
        """
        if step not in self.steps:
            raise SpecError(f"{self.path} has no step {step}; it has {self.steps}")
        return Run.open(self.path / f"step_{step}")

    def table(self, name: str) -> pd.DataFrame:
        """Return ``tables/<name>.parquet``: trajectories, births or layers.

        ``attrs["columns"]`` say what columns mean.

        Raises
        ------
        SpecError
            If there is no such table.
        """
        file = self.path / "tables" / f"{name}.parquet"
        if not file.is_file():
            known = sorted(f.stem for f in file.parent.glob("*.parquet"))
            raise SpecError(
                f"{self.path} has no table {name!r}{did_you_mean(name, known)}; "
                f"it has {', '.join(known) or 'none'}"
            )
        return read_parquet(file)

    def __repr__(self) -> str:
        name, steps = self.manifest["model"]["name"], self.steps
        return f"Evolution({str(self.path)!r}: {name}, {len(steps)} snapshots to step {steps[-1]})"


def read_evolution(path: Path) -> dict[str, Any]:
    """Return the manifest of a folder of evolution, finished or not.

    Raises
    ------
    MissingError
        If there is no such folder.
    RunError
        If it is something else.
    """
    if not path.exists():
        raise MissingError(f"no folder at {path}; `polysem evolve` makes one")
    try:
        manifest = json.loads((path / "evolution.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("evolution"), int):
        raise RunError(f"{path} holds no evolution: it has no evolution.json written by polysem")
    return manifest


def write_evolution(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder of evolution, whole or not at all.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    file = path / "evolution.json"
    part = file.with_name(f".{file.name}.partial-{os.getpid()}")
    text = json.dumps({"evolution": EVOLUTION_FORMAT, **manifest}, indent=2, ensure_ascii=False)
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text + "\n", encoding="utf-8")
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)


def check_evolution(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before any work, to write where something else is or to resume nothing.

    Raises
    ------
    RunError
        If the folder is in the way, or resume and overwrite are both asked for.
    MissingError
        If there is nothing to resume.
    """
    if resume and overwrite:
        raise RunError("resume and overwrite exclude each other: choose one")
    if path.is_file():
        raise RunError(f"{path} is a file; name a folder")
    if not path.exists() or not any(path.iterdir()):
        if resume:
            raise MissingError(f"{path} holds nothing to resume; leave out --resume")
        return
    try:
        status = read_evolution(path)["status"]
    except RunError:
        raise RunError(
            f"{path} holds something other than an evolution and is left alone; name another folder"
        ) from None
    if not (resume or overwrite):
        found = "already holds a result" if status == "complete" else "is not finished"
        raise RunError(f"{path} {found}; go on with --resume, or start anew with --overwrite")


def clear_evolution(path: Path, *, but: Path) -> None:
    """Remove what an earlier evolution wrote, except one of its runs, and nothing else."""
    with disk_errors(path):
        (path / "evolution.json").unlink(missing_ok=True)
        for run in path.glob("step_*"):
            if run != but:
                shutil.rmtree(run)
        for name in ("tables", "pictures"):
            shutil.rmtree(path / name, ignore_errors=True)
