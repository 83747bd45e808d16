"""``--set KEY=VALUE``: changes to a recipe on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["parse_changes"]


def parse_changes(said: Sequence[str]) -> dict[str, Any]:
    """Return the values by the full names of their keys; a value is read as YAML.

    Raises
    ------
    RecipeError
        If one is not of the form KEY=VALUE.

    >>> parse_changes(["seed=3", "optimiser.clip={norm: 1}", "data.train=a/b.parquet"])
    {'seed': 3, 'optimiser.clip': {'norm': 1}, 'data.train': 'a/b.parquet'}
    """
    import yaml

    from polysem.errors import RecipeError

    changes: dict[str, Any] = {}
    for text in said:
        key, equals, value = text.partition("=")
        if not (equals and all(key.split("."))):
            raise RecipeError(f"--set {text!r}: expected KEY=VALUE, as in optimiser.lr=0.001")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            changes[key] = value  # a spec with a colon, say
    return changes
