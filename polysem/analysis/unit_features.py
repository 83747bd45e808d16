"""What a unit is compared by: one direction for each face, from what excites it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from polysem.analysis.faces import Face
from polysem.analysis.monosemanticity import centroids, unit_length
from polysem.errors import SpecError
from polysem.store.run import Run

__all__ = [
    "Features", "centroid_features", "class_features", "default_features", "face_table",
]  # fmt: skip

Features = npt.NDArray[np.float32]


def centroid_features(faces: list[Face]) -> Features:
    """Return the direction of each face's centroid from the mean of all images [face, dim].

    The centroid is the mean embedding weighted by activation. What all images have in common is
    taken out, for otherwise every two units would look alike. NaN for a constant unit.

    Raises
    ------
    RunError
        If the images have no embeddings.
    """
    run = faces[0].run
    found = run.embeddings
    directions = unit_length(found.to_numpy())
    kept = (run.manifest.get("embedding") or {}).get("fingerprint") == found.attrs["fingerprint"]
    parts = []
    for face in faces:
        if kept and "centroid" in face.units:
            centroid = face.of_tail["centroid"].to_numpy().astype(np.float64)
            parts.append(centroid - directions.mean(0))
            continue
        seen = directions[face.rows]
        parts += [
            centroids(face.activations[:, some], seen) - seen.mean(0) for some in face.chunks()
        ]
    return _directions(parts)


def class_features(faces: list[Face]) -> Features:
    """Return how each face's class means differ from their mean, as directions [face, class].

    NaN for a constant unit.

    Raises
    ------
    SpecError
        If the images have no labels, or fewer than three classes: two would tell units apart by
        a sign alone.
    """
    parts = []
    for face in faces:
        count = face.units["class_count"].to_numpy() if "class_count" in face.units else np.zeros(0)
        if (count > 0).sum() < 3:
            raise SpecError(
                f"{face.run.path} has labels of {int((count > 0).sum())} classes; profiles over "
                "classes need three: compare units by their centroids"
            )
        seen = count > 0
        means = face.sign * face.moment("class_sum")[seen] / count[seen, None] - face.smallest
        means = np.where(face.constant, np.nan, means)
        parts.append((means / means.mean(0) - 1).T)
    return _directions(parts)


def default_features(run: Run) -> str:
    """Return ``centroid`` where the images have embeddings, else ``class``."""
    return "centroid" if (run.path / "embeddings.zarr").is_dir() else "class"


def face_table(faces: list[Face]) -> pd.DataFrame:
    """Return site, unit and tail of each row of the features."""
    return pd.concat(
        [
            pd.DataFrame({"site": f.site, "unit": np.arange(f.n_units), "tail": f.tail})
            for f in faces
        ],
        ignore_index=True,
    )


def _directions(parts: list[npt.NDArray[np.float64]]) -> Features:
    return np.concatenate([unit_length(part).astype(np.float32) for part in parts])
