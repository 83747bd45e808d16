"""The errors that polysem raises on purpose; each says what is wrong, where, and what to do.

::

    PolysemError
    ├── SpecError        (ValueError)          a model, data or site spec that cannot be understood
    ├── MissingError     (FileNotFoundError)   a file or folder that is not there
    ├── CheckpointError  (ValueError)          weights that cannot be read, or do not fit the model
    ├── DataError        (ValueError)          data whose layout or labels do not hold together
    │   └── ImageError                         one image that cannot be read
    ├── RunError         (ValueError)          a run folder in the way, incomplete or foreign
    ├── RecipeError      (ValueError)          a training recipe that cannot be followed
    └── NonFiniteError   (ArithmeticError)     NaN or infinity in weights, activations or loss

The command line prints the message of any of them and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "ImageError",
    "MissingError",
    "NonFiniteError",
    "PolysemError",
    "RecipeError",
    "RunError",
    "SpecError",
    "did_you_mean",
]


class PolysemError(Exception):
    """Anything that the user can put right; the message is one clear sentence.

    `kept` says what is left of long work that ended so, and how to go on; it ends the message.
    """

    kept = ""

    def __str__(self) -> str:
        return super().__str__() + self.kept


class SpecError(PolysemError, ValueError):
    """A model, data or site spec that cannot be understood."""


class MissingError(PolysemError, FileNotFoundError):
    """A file or folder that is not there."""


class CheckpointError(PolysemError, ValueError):
    """Weights that cannot be read safely, or that do not fit the model."""


class DataError(PolysemError, ValueError):
    """Data whose layout, labels or classes do not hold together."""


class ImageError(DataError):
    """One image that cannot be read; `key` names it and `reason` says why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"image {key!r} cannot be read: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.key, self.reason)  # from a loader's worker to the probe


class RunError(PolysemError, ValueError):
    """A run folder that is in the way, incomplete, or not written by polysem."""


class RecipeError(PolysemError, ValueError):
    """A training recipe with an unknown key, a wrong type or an impossible combination."""


class NonFiniteError(PolysemError, ArithmeticError):
    """NaN or infinity in weights, activations or the loss."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a', 'b'?"`` for near matches of `name`, or an empty string.

    >>> did_you_mean("mlp.hook_pots", ["mlp.hook_post", "attn.hook_z"])
    "; did you mean 'mlp.hook_post'?"
    """
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""
