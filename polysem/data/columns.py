"""Which columns of a table hold images and labels; for every reader of Hugging Face tables.

Columns are described as Hugging Face describes them in a parquet file's metadata:
``{"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [...]}}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polysem.errors import DataError, SpecError, did_you_mean

__all__ = ["NO_LABELS", "Features", "image_column", "label_column", "labels_and_classes"]

Features = Mapping[str, Mapping[str, Any]]

#: Given as the label column, leaves labels out.
NO_LABELS = "none"

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "class", "target")


def image_column(features: Features, wanted: str | None = None, *, name: str) -> str:
    """Return the column with the images: the one wanted, the only one, or ``image`` or ``img``.

    Raises
    ------
    SpecError
        If the column wanted holds no images, or several do and none is called so.
    DataError
        If no column holds images.
    """
    images = [column for column, feature in features.items() if _is(feature, "Image")]
    if wanted is not None:
        if wanted not in images:
            raise SpecError(f"{name} has no image column {wanted!r}{did_you_mean(wanted, images)}")
        return wanted
    if not images:
        raise DataError(
            f"{name}: no column holds images, only {', '.join(features)}; expected a column of "
            "bytes, or of a struct with a field 'bytes'"
        )
    for column in (*_IMAGE_NAMES, *images):
        if column in images and (column in _IMAGE_NAMES or len(images) == 1):
            return column
    raise SpecError(
        f"{name} has the image columns {', '.join(images)}; add '?image={images[0]}' to the spec, "
        "or another"
    )


def label_column(features: Features, wanted: str | None = None, *, name: str) -> str | None:
    """Return the column with the labels, or None without labels.

    It is the one wanted (``none``: no labels), the only one of type ``ClassLabel``, or one
    called label, labels, class or target.

    Raises
    ------
    SpecError
        If the column wanted is not there, or there are several and none is called so.
    """
    if wanted == NO_LABELS:
        return None
    if wanted is not None:
        if wanted not in features:
            raise SpecError(f"{name} has no column {wanted!r}{did_you_mean(wanted, features)}")
        return wanted
    typed = [column for column, feature in features.items() if _is(feature, "ClassLabel")]
    if len(typed) == 1:
        return typed[0]
    named = next((column for column in _LABEL_NAMES if column in (typed or features)), None)
    if typed and named is None:
        raise SpecError(
            f"{name} has the label columns {', '.join(typed)}; add '?label={typed[0]}' to the "
            "spec, or another"
        )
    return named


def labels_and_classes(
    values: Sequence[object], names: Sequence[str] | None, *, name: str, keys: Sequence[str]
) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Turn a column of labels into class numbers and class names.

    Words are numbered in sorted order. A column with nothing but missing values, or with nothing
    but −1 (Hugging Face's mark for a test set whose labels are held back), means no labels.

    Parameters
    ----------
    values : sequence [image] of int, str or None
        The column.
    names : sequence of str, optional
        Class names, where the column has numbers.
    name : str
        The spec, for messages.
    keys : sequence of str [image]
        Image keys, for messages.

    Raises
    ------
    DataError
        If labels are missing for some images only, or are neither whole numbers nor words.
    """
    if names is not None and not (
        isinstance(names, (list, tuple)) and all(isinstance(word, str) for word in names)
    ):
        raise DataError(f"{name}: the class names are {str(names)[:60]!r}, not a list of words")
    classes = None if names is None else tuple(names)
    held_back = [value is None or (type(value) is int and value == -1) for value in values]
    if all(held_back):
        return None, classes
    if any(held_back):
        raise DataError(
            f"{name}: {sum(held_back)} of {len(keys)} images have no label, such as "
            f"{keys[held_back.index(True)]!r}; label them all, or add "
            f"'?label={NO_LABELS}' to the spec to leave labels out"
        )
    if all(type(value) is str for value in values):
        known = classes or tuple(sorted({str(value) for value in values}))
        number = {word: i for i, word in enumerate(known)}
        strange = next((i for i, value in enumerate(values) if value not in number), None)
        if strange is not None:
            raise DataError(
                f"{name}: image {keys[strange]!r} has the label {values[strange]!r}, which is not "
                f"among the class names{did_you_mean(str(values[strange]), known)}"
            )
        return np.array([number[str(value)] for value in values], dtype=np.int64), known
    odd = next((i for i, value in enumerate(values) if not isinstance(value, int)), None)
    if odd is not None:
        raise DataError(
            f"{name}: image {keys[odd]!r} has the label {values[odd]!r}; expected a whole number "
            f"or a word; add '?label={NO_LABELS}' to the spec to leave labels out"
        )
    return np.array(values, dtype=np.int64), classes


def _is(feature: object, kind: str) -> bool:
    return isinstance(feature, Mapping) and feature.get("_type") == kind
