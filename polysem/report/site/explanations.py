"""The gallery of explanations: images, what in them spoke for what, and how well that adds up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from polysem.report.page import number
from polysem.report.site.extras import Extra, Whole, shrunk_picture
from polysem.report.site.parts import Content, Missing

__all__ = ["explanations"]

#: Images of a folder that are shown.
_MOST = 24


def explanations(whole: Whole) -> Content:
    """Return the page of all explanations that were given."""
    given = whole.of_kind("explanations")
    missing = []
    if not given:
        run = whole.runs[0].run
        spec, data = run.manifest["model"]["spec"], run.manifest["data"]["name"]
        command = (
            f"polysem explain --model {spec} --data '{data}' --out WHY; "
            f"polysem report {run.path} WHY --out SITE"
        )
        missing.append(Missing("Gallery of explanations", command))
    return Content(
        {"galleries": [_one(extra, whole) for extra in given]}, missing=missing, empty=not given
    )


def _one(extra: Extra, whole: Whole) -> dict[str, Any]:
    index = extra.table("index")
    methods = list(extra.manifest["methods"])
    images = list(dict.fromkeys(index["image"]))
    return {
        "name": extra.name,
        "facts": extra.manifest.get("data") or extra.manifest.get("architecture", ""),
        "skipped": extra.manifest.get("skipped", []),
        "error": _error(index),
        "items": [
            _item(extra, whole, index[index["image"] == image], i, methods)
            for i, image in enumerate(images[:_MOST])
        ],
        "more": max(0, len(images) - _MOST),
    }


def _error(index: pd.DataFrame) -> str:
    """Return how far the maps of B-cos networks add up to what they explain."""
    if "error" not in index or not index["error"].notna().any():
        return ""
    return f"{float(index['error'].abs().max()):.1e}"


def _item(
    extra: Extra, whole: Whole, rows: pd.DataFrame, i: int, methods: list[str]
) -> dict[str, Any]:
    first = rows.iloc[0].to_dict()
    pictures = []
    for name in ("image", "colour", *methods):
        file = extra.path / "images" / f"{i:04d}-{name}.png"
        if file.is_file():
            words = {"image": "image", "colour": "in colour"}.get(name, name)
            pictures.append((words, shrunk_picture(file, whole.folder, f"{extra.key}/{file.stem}")))
    return {
        "key": str(first["key"]),
        "label": _text(first["label"]),
        "prediction": _text(first["prediction"]),
        "target": str(first["target"]),
        "value": number(float(first["value"])),
        "pictures": pictures,
    }


def _text(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and np.isnan(value))
    return "" if missing else str(value)
