"""A folder of evolution opened for reading: one run for each snapshot, and tables over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from polysem.errors import MissingError, RunError, SpecError, did_you_mean
from polysem.store.run import Run, read_parquet

__all__ = ["EVOLUTION_FORMAT", "Evolution", "read_evolution"]

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
