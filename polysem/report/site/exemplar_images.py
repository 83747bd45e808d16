"""Which images the pages of a run show, and what is said of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polysem.report.site.sprites import Sprites
from polysem.report.unit import captions
from polysem.store.run import Run

__all__ = ["described_images", "exemplar_images", "head_images"]

Ints = npt.NDArray[np.int64]

#: Images of each kind on the page of a head.
_OF_A_HEAD = 6


def exemplar_images(run: Run, site: str, n_exemplars: int) -> Ints:
    """Return the images of a site's exemplars [tail, unit, rank] by index in the data; -1: none."""
    top = run.units(site)["top_image"].isel(rank=slice(n_exemplars)).to_numpy()
    return np.where(np.isnan(top), -1, top).astype(np.int64)


def head_images(run: Run) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Return for which images each head matters most, and how much the cost changes without it.

    Returns
    -------
    rows : int64 array [layer, head, kind, rank]
        Rows of the study; kind 0 needs the head, 1 is better without it; -1 where there is none.
    gain : float64 array [layer, head, kind, rank]
        Rise of the cost without the head.
    """
    gates = run.gates
    gain = (gates["cost_zero"] - gates["cost"]).transpose("layer", "head", "image").to_numpy()
    order = np.argsort(-gain, axis=-1, kind="stable")
    most = min(_OF_A_HEAD, gain.shape[-1])
    rows = np.stack([order[..., :most], order[..., ::-1][..., :most]], axis=2)
    found = np.take_along_axis(gain[:, :, None], rows, axis=-1).astype(np.float64)
    there = found * np.array([1.0, -1.0])[:, None] > 0
    return np.where(there, rows, -1), found


def described_images(run: Run, sprites: Sprites, wanted: Ints) -> dict[str, Any]:
    """Return what pages need to draw and caption each slot of the sprites."""
    said = captions(run, wanted.tolist())
    in_order = [said[image] for image in wanted.tolist()]
    names: dict[str | None, int] = {}
    for caption in in_order:
        for name in (caption.label, caption.prediction):
            if name is not None:
                names.setdefault(name, len(names))
    right = {True: 1, False: 0, None: -1}
    return {
        **sprites.describe(),
        "image": wanted.tolist(),
        "names": list(names),
        "label": [names.get(caption.label, -1) for caption in in_order],
        "prediction": [names.get(caption.prediction, -1) for caption in in_order],
        "correct": [right[caption.correct] for caption in in_order],
    }
