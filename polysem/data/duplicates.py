"""Images that look alike: a check on splits, beside the data sources rather than in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from polysem.data.dataset import ImageData

__all__ = ["difference_hash", "look_alikes"]

_ROWS_AT_ONCE = 2048


def look_alikes(data: ImageData, *, max_distance: int = 2) -> pd.DataFrame:
    """Find pairs of images whose difference hashes nearly agree.

    Medical data repeat images under several names, HAM10000 even under several lesions
    (arXiv 2401.14497 reports some), which no split by name can keep apart. Pairs found here are
    candidates to be looked at: a hash of 64 bits also joins different pictures of little structure.

    Parameters
    ----------
    data : ImageData
        The images; each is read once. Time grows with the square of their number.
    max_distance : int
        Largest number of differing bits, 0 to 64.

    Returns
    -------
    DataFrame
        One row a pair, by rising ``distance_bits``: keys ``image`` and ``image_2``, in the order
        of `data`.

    Raises
    ------
    ImageError
        If an image cannot be read.
    """
    signs = np.array([difference_hash(data.read(i)) for i in range(len(data))], dtype=np.float32)
    signs = 2 * signs.reshape(len(data), 64) - 1
    pairs: list[npt.NDArray[Any]] = []
    for first in range(0, len(data), _ROWS_AT_ONCE):
        rows = signs[first : first + _ROWS_AT_ONCE]
        distance = np.rint((64 - rows @ signs.T) / 2).astype(np.int64)  # [image, image_2]
        one, two = np.nonzero(distance <= max_distance)
        later = first + one < two
        one, two = one[later], two[later]
        pairs.append(np.stack([first + one, two, distance[one, two]], axis=1))
    found = np.concatenate(pairs) if pairs else np.empty((0, 3), dtype=np.int64)
    found = found[np.argsort(found[:, 2], kind="stable")]
    return pd.DataFrame(
        {
            "image": [data.keys[i] for i in found[:, 0]],
            "image_2": [data.keys[i] for i in found[:, 1]],
            "distance_bits": found[:, 2],
        }
    )


def difference_hash(image: Image.Image) -> npt.NDArray[np.bool_]:
    """Return 64 bits: whether each cell of an 8 × 8 grid is brighter than its left neighbour.

    Unchanged by resizing and by brightness, nearly so by recompression.
    """
    small = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(small, dtype=np.int16)
    return (cells[:, 1:] > cells[:, :-1]).ravel()
