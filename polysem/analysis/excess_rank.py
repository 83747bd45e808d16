"""How many things excite a unit: the rank of what its activation does to the embeddings' spread.

Weighting images by a unit's activation changes the second moment of their embeddings. With w the
embedding of an image on its principal axes and z the standardised activation, the change is

    M = E[z w wᵀ].

If embeddings add up from independent concepts, w = Σ_c x_c v_c, and the unit answers to some of
them, z = Σ_{c∈S} β_c x_c, all mixed terms vanish and M = Σ_{c∈S} β_c E[x_c³] v_c v_cᵀ: one positive
eigenvalue for each concept, and none for noise or for any other concept however common. A linear
statistic cannot tell one concept from a sum of several, because a sum of directions is a
direction; this third moment can.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polysem.analysis.scaling import Floats

__all__ = ["excess_eigenvalues", "excess_rank", "principal_axes"]

#: Eigenvalues below this share of a unit's largest do not count: encoders write one concept a
#: little along other axes too, and enough images make every trace of it stand out of the null.
FLOOR = 0.1
#: Units in one matrix product, so that memory does not grow with them.
_AT_ONCE = 4096


def excess_rank(
    activations: Floats, embeddings: Floats, *, n_axes: int = 32, n_null: int = 8, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Return the effective number of things in the embeddings that excite each unit.

    The participation ratio ``(Σ λ)² / Σ λ²`` of the positive eigenvalues of E[z w wᵀ] that stand
    out of a null, in which activations are permuted over the images; of each, what noise has
    added is taken off: ``sqrt(λ² - edge²)``, the edge being the largest eigenvalue of the null, or
    a tenth of the unit's own largest where that is more.
    Images need no labels. The score of the upper tail; of ``-activations`` it is that of the
    lower.

    Parameters
    ----------
    activations : float array [image, unit]
        Any offset and scale above 0.
    embeddings : float array [image, dim]
        Any offset, rotation and scale.
    n_axes : int
        Principal axes of the embeddings that are looked at.
    n_null : int
        Permutations.
    seed : int
        Of the permutations.

    Returns
    -------
    float64 array [unit]
        From 1 (one thing) up to the number of axes; low is monosemantic. NaN for a constant unit
        and where nothing stands out of the null: what excites the unit is not in the embeddings,
        or the images are too few to see it.

    Notes
    -----
    A concept is seen by its skewness, E[x³]: one that half of the images show is not seen, a rare
    one is seen well. Chosen as the default by the planted benchmark (``polysem bench
    polysemanticity``) on one half of its units.
    """
    found, edge = excess_eigenvalues(
        activations, embeddings, n_axes=n_axes, n_null=n_null, seed=seed
    )
    edge = np.maximum(edge, FLOOR * found[:, -1])
    over = np.where(found > edge[:, None], found**2 - edge[:, None] ** 2, 0.0)
    kept = np.sqrt(over)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(kept.sum(1) ** 2 / over.sum(1))


def excess_eigenvalues(
    activations: Floats, embeddings: Floats, *, n_axes: int = 32, n_null: int = 8, seed: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the eigenvalues of E[z w wᵀ] and the largest that chance makes.

    Parameters
    ----------
    activations, embeddings, n_axes, n_null, seed
        As in `excess_rank`.

    Returns
    -------
    eigenvalues : float64 array [unit, axis]
        Ascending; NaN for a constant unit.
    edge : float64 array [unit]
        Largest eigenvalue over the permutations.
    """
    axes = principal_axes(embeddings, n_axes)
    rows, columns = np.triu_indices(axes.shape[1])
    products = (axes[:, rows] * axes[:, columns]).astype(np.float32)
    rng = np.random.default_rng(seed)
    n_images, n_units = activations.shape
    orders = [np.arange(n_images), *(rng.permutation(n_images) for _ in range(n_null))]
    found = np.empty((n_units, axes.shape[1]))
    edge = np.full(n_units, -np.inf)
    for number, order in enumerate(orders):
        shuffled = products[order] / np.float32(max(1, n_images))
        for start in range(0, n_units, _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            moment = _standardised(activations[:, some]).astype(np.float32).T @ shuffled
            values = _eigenvalues(moment, axes.shape[1])
            if number == 0:
                found[some] = values
            else:
                edge[some] = np.maximum(edge[some], values[:, -1])
    return found, edge


def principal_axes(embeddings: Floats, n_axes: int) -> npt.NDArray[np.float64]:
    """Return embeddings on their principal axes [image, axis], half whitened.

    An axis of standard deviation s is scaled to the square root of s / s₁, s₁ that of the first:
    concepts that an encoder writes small count, and its noise does not count as much as them.
    Axes without spread are left out; one of zeros stays if there is no other.
    """
    off = embeddings.astype(np.float64) - embeddings.mean(0, dtype=np.float64)
    squares, directions = np.linalg.eigh(off.T @ off / max(1, len(off)))
    spread = np.sqrt(squares[::-1][:n_axes].clip(min=0))
    n_kept = max(1, int((spread > 1e-6 * max(spread[0], 1e-300)).sum()))
    spread = np.where(spread > 0, spread, 1.0)[:n_kept]
    return np.asarray(off @ directions[:, ::-1][:, :n_kept] / np.sqrt(spread * spread[0]))


def _standardised(activations: Floats) -> npt.NDArray[np.float64]:
    off = activations.astype(np.float64) - activations.mean(0, dtype=np.float64)
    deviation = off.std(0)
    constant = (activations == activations[:1]).all(0)
    return np.asarray(off / np.where(constant, np.nan, deviation))


def _eigenvalues(upper: Floats, n_axes: int) -> npt.NDArray[np.float64]:
    """Return eigenvalues [unit, axis] of symmetric matrices given as upper triangles."""
    rows, columns = np.triu_indices(n_axes)
    square = np.zeros((len(upper), n_axes, n_axes))
    square[:, rows, columns] = upper
    square[:, columns, rows] = upper
    whole = np.isfinite(upper).all(1)
    values = np.full((len(upper), n_axes), np.nan)
    values[whole] = np.linalg.eigvalsh(square[whole])
    return values
