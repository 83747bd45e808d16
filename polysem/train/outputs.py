"""The folder that a training writes: what lies where, and when it may be written to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from polysem.errors import MissingError, RunError
from polysem.train.recipe import Recipe, recipe_to_dict

__all__ = ["Outputs"]


class Outputs:
    """Paths of one training folder, and the few small files that are written as a whole or by line.

    Parameters
    ----------
    folder : Path
    clip : bool
        Whether the trained model is open_clip's, in a folder as open_clip keeps them.

    Attributes
    ----------
    recipe, log, curves, state, model, average, card : Path
    """

    def __init__(self, folder: Path, *, clip: bool = False) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        self.log = folder / "log.jsonl"
        self.curves = folder / "curves.png"
        self.state = folder / "state.pt"
        self.model = folder / ("open_clip_model.safetensors" if clip else "model.safetensors")
        self.average = folder / "average.safetensors"
        self.card = folder / "README.md"

    def snapshot(self, step: int) -> Path:
        """Return where the weights after `step` steps are kept."""
        return self.folder / "snapshots" / f"step_{step:07d}.safetensors"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse, before any work, to write where something else is or to resume nothing.

        Raises
        ------
        RunError
            If the folder is in the way.
        MissingError
            If there is nothing to resume.
        """
        if resume and overwrite:
            raise RunError("resume and overwrite exclude each other: choose one")
        if resume:
            if not (self.state.exists() or self.model.exists()):
                raise MissingError(f"{self.folder} holds no training to resume: no state.pt there")
            return
        if self.folder.is_file():
            raise RunError(f"{self.folder} is a file; a training writes a folder")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        if not overwrite:
            how = "resume it, " if self.state.exists() else ""
            raise RunError(
                f"{self.folder} is not empty; {how}overwrite it, or choose another folder"
            )
        if not self.recipe.exists():
            raise RunError(
                f"{self.folder} holds files that no training wrote, so it is not overwritten; "
                "choose another folder"
            )

    def start(self, recipe: Recipe) -> None:
        """Make the folder, clear what an earlier training wrote there, and note the recipe."""
        files = (self.state, self.model, self.average, self.log, self.curves, self.card)
        for old in (*files, *self._snapshots()):
            old.unlink(missing_ok=True)
        text = yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)
        self.write_text(self.recipe, text)

    def _snapshots(self) -> list[Path]:
        return sorted((self.folder / "snapshots").glob("step_*.safetensors"))

    def add_to_log(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record, allow_nan=False) + "\n")

    def records(self) -> list[Mapping[str, Any]]:
        """Return the lines of the log, of the epochs that have ended."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def last_record(self) -> Mapping[str, Any]:
        """Return the last line of the log, of the epoch that ended last."""
        return self.records()[-1]

    def rewind_log(self, step: int) -> None:
        """Drop the lines of epochs that ended after `step`; a resumed training repeats them."""
        if self.log.exists():
            lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
            self.write_text(self.log, "".join(kept))

    def write_text(self, path: Path, text: str) -> None:
        """Write a small file, whole or not at all.

        Raises
        ------
        RunError
            If it cannot be written.
        """
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}") from None
        finally:
            if path.parent.is_dir():
                part.unlink(missing_ok=True)


def _step_of(line: str) -> int:
    return int(json.loads(line)["step"])
