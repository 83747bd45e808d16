"""Fuzz what is read as one file of bytes, guided by which lines of polysem an input reaches.

    pip install atheris
    PYTHONPATH=.:tests python tests/fuzz/guided.py recipe runs/corpus -max_total_time=300

The first word is a target, the rest goes to libFuzzer: folders of inputs (new ones are kept in the
first) and options. It ends with a traceback, and keeps the input, where something other than a
sentence comes of it. `long.py` spoils whole folders, which this does not.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

_SCRATCH = Path(tempfile.gettempdir()) / f"polysem-fuzz-{os.getpid()}"


def checkpoint(content: bytes) -> None:
    """Open the bytes as weights."""
    from polysem.models.load import load_model

    load_model(_written(content, "weights.safetensors"))


def manifest(content: bytes) -> None:
    """Open a run whose manifest these bytes are."""
    from polysem.store.run import Run

    Run.open(_written(content, "manifest.json").parent)


def recipe(content: bytes) -> None:
    """Read the bytes as a recipe, and write it out."""
    from polysem.train.recipe import load_recipe, recipe_to_dict

    recipe_to_dict(load_recipe(_written(content, "recipe.yaml")))


def vocabulary(content: bytes) -> None:
    """Read the bytes as words, a line each and as a table."""
    from polysem.describe.vocabulary import load_vocabulary

    for name in ("words.txt", "words.csv"):
        words = load_vocabulary(_written(content, name))
        assert all(words.concepts)


def _written(content: bytes, name: str) -> Path:
    file = _SCRATCH / name
    file.write_bytes(content)
    return file


def main() -> None:
    targets = {one.__name__: one for one in (checkpoint, manifest, recipe, vocabulary)}
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        sys.exit(f"usage: guided.py {{{','.join(targets)}}} [libFuzzer's options]")
    work: Callable[[bytes], None] = targets[sys.argv.pop(1)]
    import atheris  # only here: pytest imports this file where atheris is not installed

    with atheris.instrument_imports(include=["polysem"]):
        from polysem.errors import PolysemError

        for module in ("describe.vocabulary", "models.load", "store.run", "train.recipe"):
            import_module(f"polysem.{module}")
    _SCRATCH.mkdir()

    def once(content: bytes) -> None:
        try:
            work(content)
        except PolysemError as error:
            assert str(error).strip() and len(str(error)) < 10_000

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
