"""Facets for a run that has none yet: its exemplars divided by what a CLIP model sees of them.

What all pictures vary in is made alike first: embeddings are whitened by those of any pictures.
Exemplars of red things and of blue things then lie apart though both come in every shape and on
every ground.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polysem.analysis.faces import Face, faces
from polysem.analysis.facet_table import FACET_MEANINGS, UNIT_MEANINGS
from polysem.analysis.facet_table import divide as divide_faces
from polysem.describe.pictures import Pictures
from polysem.errors import RunError
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = ["divide", "whitening"]

#: Added to all variances before whitening, as a share of their mean: directions in which pictures
#: hardly vary are noise.
_RIDGE = 0.1
#: Fewest exemplars that can be divided.
_FEWEST = 6


def divide(
    run: Run, pictures: Pictures, *, sites: Sequence[str], seed: int = 0, progress: bool = True
) -> None:
    """Make the tables of facets of some sites, as ``polysem facets`` does, unless the run has them.

    Facets of other sites stay.

    Parameters
    ----------
    run : Run
    pictures : Pictures
        What an encoder saw of the run: crops are divided where there are any, else images.
    sites : sequence of str
    seed : int
        Of blobs and resamples.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Raises
    ------
    RunError
        If there are fewer than six exemplars a unit.
    """
    older = _older(run)
    known = set() if older is None else set(older[1]["site"])
    wanted = [site for site in sites if site not in known]
    if not wanted:
        return
    ranks = min(int(run.manifest["options"]["top_k"]), int(run.manifest["n_images"]))
    if ranks < _FEWEST:
        raise RunError(
            f"{run.path} has at most {ranks} exemplars a unit, and facets need six: probe at "
            "least six images with --top-k 16 or more"
        )
    whiten = {"images": whitening(pictures.images)}
    for site in wanted:
        if site in pictures.crops:
            whiten[site] = whitening(pictures.crops[site].background)

    def vectors(face: Face) -> tuple[npt.NDArray[np.float32], str]:
        there = torch.from_numpy(~face.constant)[:, None, None]
        if face.site in pictures.crops:
            crops = pictures.crops[face.site].exemplars[face.tail]
            return _masked(crops @ whiten[face.site], there), "crops"
        top = face.of_tail["top_image"].to_numpy()
        known = np.isfinite(top)
        rows = face.rows_of(np.where(known, top, run.images["image"].iloc[0]))
        found = pictures.images[torch.from_numpy(rows)] @ whiten["images"]
        return _masked(found, there & torch.from_numpy(known)[..., None]), "images"

    todo = [face for site in wanted for face in faces(run, site)]
    parts = divide_faces(todo, vectors, "facets", most=5, seed=seed, progress=progress)
    units = pd.concat([*(older or ())[:1], *(part[1] for part in parts)], ignore_index=True)
    rows = pd.concat([*(older or ())[1:], *(part[2] for part in parts)], ignore_index=True)
    add_table(run, "unit_facets", units, meanings=UNIT_MEANINGS)
    add_table(run, "facets", rows, meanings=FACET_MEANINGS)


def whitening(background: Tensor) -> Tensor:
    """Return the matrix [dim, dim] that makes what pictures vary in alike.

    Parameters
    ----------
    background : Tensor
        Embeddings of any pictures [picture, dim].
    """
    off = background.double() - background.double().mean(0)
    variance, axes = torch.linalg.eigh(off.T @ off / len(off))
    variance = variance.clamp(min=0)
    scale = (variance + _RIDGE * variance.mean()).rsqrt()
    matrix: Tensor = (axes * scale) @ axes.T
    return matrix.to(background)


def _older(run: Run) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    if not run.has_table("facets"):
        return None
    return run.table("unit_facets"), run.table("facets")


def _masked(vectors: Tensor, there: Tensor) -> npt.NDArray[np.float32]:
    return vectors.masked_fill(~there, torch.nan).float().numpy()
