"""Monosemanticity: how alike the images are that excite a unit, weighted by how much they do.

The score of Pach et al. (MS, arXiv 2504.02821) in closed form. With ã the activation moved and
stretched to [0, 1] over the images and e the embeddings of unit length,

    MS = Σ_{i<j} ã_i ã_j ⟨e_i, e_j⟩ / Σ_{i<j} ã_i ã_j
       = (‖Σ ã_i e_i‖² - Σ ã_i²) / ((Σ ã_i)² - Σ ã_i²),

which costs one matrix product instead of all pairs of images. `polysem.probe.embedding_sums` has
the same in a stream, for images that are seen once and in any order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polysem.analysis.scaling import Floats, unit_interval

__all__ = ["centroids", "monosemanticity_error", "monosemanticity_score", "unit_length"]


def unit_length(embeddings: Floats) -> npt.NDArray[np.float64]:
    """Return embeddings [..., dim] scaled to length 1 in float64; NaN where the length is 0."""
    wide = embeddings.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return wide / np.where(length > 0, length, np.nan)


def monosemanticity_score(activations: Floats, embeddings: Floats) -> npt.NDArray[np.float64]:
    """Return how alike the images are that excite each unit.

    The mean cosine between the embeddings of two images, weighted by how much both excite the
    unit. 1, the best, if all images that excite the unit look the same to the encoder; a unit
    that fires at random has the mean cosine of the data, which may lie well above 0.

    Parameters
    ----------
    activations : float array [image, unit]
        Any offset and scale.
    embeddings : float array [image, dim]
        Any length; only directions count.

    Returns
    -------
    float64 array [unit]
        In [-1, 1], higher is more monosemantic. NaN for a constant unit, and for one that a
        single image excites (there is no pair).

    References
    ----------
    Pach et al. 2025, arXiv 2504.02821, in closed form.

    Examples
    --------
    >>> a = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> monosemanticity_score(a, np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    array([1., 0.])
    """
    scaled = unit_interval(activations)
    return _score(scaled, scaled.T @ unit_length(embeddings))


def monosemanticity_error(activations: Floats, embeddings: Floats) -> npt.NDArray[np.float64]:
    """Return the standard error of `monosemanticity_score` over images [unit].

    The infinitesimal jackknife, which is what the spread of a bootstrap over images tends to with
    ever more replicates: ``sqrt(Σ_i (d MS / d w_i)²)`` at equal weights, with the smallest and
    largest activation held fixed. NaN where the score is.

    References
    ----------
    Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, chapter 6.
    """
    scaled = unit_interval(activations)
    directions = unit_length(embeddings)
    towards = scaled.T @ directions
    square = scaled**2
    total, squares = scaled.sum(0), square.sum(0)
    pairs = total**2 - squares
    score = _score(scaled, towards)
    influence = scaled * (directions @ towards.T) - square - score * (scaled * total - square)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * np.sqrt((influence**2).sum(0)) / pairs)


def centroids(activations: Floats, embeddings: Floats) -> npt.NDArray[np.float64]:
    """Return the mean embedding of the images, weighted by how much they excite each unit.

    ``Σ ã_i e_i / Σ ã_i`` [unit, dim]; NaN for a constant unit. Its length is at most 1.
    """
    scaled = unit_interval(activations)
    return np.asarray((scaled.T @ unit_length(embeddings)) / scaled.sum(0)[:, None])


def _score(scaled: Floats, towards: Floats) -> npt.NDArray[np.float64]:
    squares = (scaled**2).sum(0)
    pairs = scaled.sum(0) ** 2 - squares
    # one image that reaches 1 and none other above 0 leaves rounding, no pair
    pairs = np.where(pairs > 1e-12 * squares, pairs, np.nan)
    return np.asarray(((towards**2).sum(1) - squares) / pairs)
