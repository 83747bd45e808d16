"""When something about a unit begins to hold for good."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["births", "label_changes", "same_as_last"]


def births(holds: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the first snapshot from which on something holds in all that follow; -1 for never.

    Parameters
    ----------
    holds : bool array [..., snapshot]

    >>> births([[False, True, True], [True, False, True], [True, True, False]])
    array([ 1,  2, -1])
    """
    to_the_end = np.logical_and.accumulate(np.asarray(holds, dtype=bool)[..., ::-1], axis=-1)
    n = to_the_end.shape[-1]
    length = to_the_end.sum(-1)
    return np.asarray(np.where(length > 0, n - length, -1), dtype=np.int64)


def same_as_last(labels: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Return where a label [..., snapshot] is the last one; None is like nothing."""
    codes = _codes(labels)
    return np.asarray((codes == codes[..., -1:]) & (codes >= 0))


def label_changes(labels: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Return whether each snapshot's label differs from the one before it [..., snapshot - 1].

    No label (None) counts as a label of its own.
    """
    codes = _codes(labels)
    return np.asarray(codes[..., 1:] != codes[..., :-1])


def _codes(labels: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    return np.asarray(pd.factorize(labels.ravel())[0].reshape(labels.shape), dtype=np.int64)
