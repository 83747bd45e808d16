"""Units with known truth: which concepts they answer to is decided here, not found.

`plant` makes activations from the concepts that images show, so that whatever claims to count a
unit's concepts can be held against the count. `co_occurring` chooses images in which some concepts
tend to come together, as they do in photographs: a score that is led astray by company will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polysem.data.dataset import ImageData
from polysem.data.subset import Subset
from polysem.errors import DataError, did_you_mean

__all__ = ["COMPANY", "PlantedUnits", "co_occurring", "plant"]

#: Concepts of drawn images that come together in the planted benchmark: images that show the
#: first without the second are mostly left out. A concept is in one pair at most.
COMPANY: Mapping[str, str] = {
    "orange": "star",
    "blue": "ring",
    "circle": "striped",
    "heart": "cloudy background",
    "dotted": "wavy background",
}

#: Concepts of one unit correlate by less than this over the images.
UNRELATED = 0.2


@dataclass(frozen=True)
class PlantedUnits:
    """Units and the truth about them.

    Attributes
    ----------
    activations : float64 array [image, unit]
        Signal and noise.
    weights : float64 array [unit, concept]
        What each concept adds to the activation where an image shows it; 0 for all that the unit
        does not answer to, below 0 for what it answers to in its lower tail.
    """

    activations: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]

    @property
    def n_concepts(self) -> npt.NDArray[np.int64]:
        """How many concepts excite each unit [unit]: the truth of its upper tail."""
        return np.asarray((self.weights > 0).sum(1))


def plant(
    presence: npt.NDArray[np.bool_],
    *,
    noise: float,
    per_count: int = 40,
    counts: Iterable[int] = range(1, 7),
    among: Sequence[int] | None = None,
    signed: bool = False,
    seed: int = 0,
) -> PlantedUnits:
    """Make units that each answer to a few concepts that have nothing to do with each other.

    ``a = Σ_c w_c presence_c + noise``, the weights between 0.5 and 1. The same seed gives the same
    units at every level of noise.

    Parameters
    ----------
    presence : bool array [image, concept]
        Which concepts each image shows.
    noise : float
        Standard deviation of normal noise, in standard deviations of the unit's signal.
    per_count : int
        Units for each number of concepts.
    counts : iterable of int
        The numbers of concepts.
    among : sequence of int, optional
        The concepts that may be planted; all where not given.
    signed : bool
        Add one to three concepts with weights between -1 and -0.5.
    seed : int
        Another seed gives other units.

    Returns
    -------
    PlantedUnits
        Units in the order of `counts`, `per_count` of each.

    Raises
    ------
    DataError
        If there are not enough concepts of which no two correlate by 0.2 or more.
    """
    rng = np.random.default_rng([seed, 0])
    wanted = [k for k in counts for _ in range(per_count)]
    allowed = np.arange(presence.shape[1]) if among is None else np.asarray(among)
    shown = presence.astype(np.float64)
    related = np.abs(_correlation(shown)) >= UNRELATED
    weights = np.zeros((len(wanted), presence.shape[1]))
    for unit, k in enumerate(wanted):
        n_below = int(rng.integers(1, 4)) if signed else 0
        chosen = _unrelated(allowed, k + n_below, related, rng)
        weights[unit, chosen] = rng.uniform(0.5, 1, len(chosen))
        weights[unit, chosen[k:]] *= -1
    signal = shown @ weights.T
    # a generator of its own, so that units do not depend on the level of noise
    grain = np.random.default_rng([seed, 1]).standard_normal(signal.shape)
    return PlantedUnits(signal + noise * signal.std(0) * grain, weights)


def co_occurring(
    data: ImageData,
    n: int,
    *,
    company: Mapping[str, str] = COMPANY,
    strength: float = 0.8,
    seed: int = 0,
) -> Subset:
    """Choose images in which some concepts tend to come with others.

    An image that shows the first concept of a pair without the second is left out with a
    probability of `strength`.

    Parameters
    ----------
    data : ImageData
        Images that say which concepts they show, several times `n` of them.
    n : int
        Images to choose.
    company : mapping of str to str
        Pairs of concept names.
    strength : float
        From 0 (no company but by chance) to 1 (the first never without the second).
    seed : int
        Another seed leaves out other images.

    Raises
    ------
    DataError
        If the data has no concepts, lacks one of these, or has too few images that may stay.
    """
    presence = data.concept_matrix()
    names = data.concepts or ()
    lonely = np.zeros(len(data), dtype=np.int64)
    for first, second in company.items():
        for name in (first, second):
            if name not in names:
                raise DataError(f"{data.name} has no concept {name!r}{did_you_mean(name, names)}")
        lonely += presence[:, names.index(first)] & ~presence[:, names.index(second)]
    draws = np.random.default_rng([seed, 2]).random(len(data))
    kept = np.flatnonzero(draws < (1 - strength) ** lonely)
    if len(kept) < n:
        raise DataError(
            f"{len(kept)} of the {len(data)} images of {data.name} may stay, not the {n} asked "
            "for: give more images, or a strength nearer 0"
        )
    return Subset(data, kept[:n])


def _correlation(shown: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return correlations [concept, concept]; of a concept that never changes, 1 with all."""
    off = shown - shown.mean(0)
    length = np.sqrt((off**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (off.T @ off) / np.outer(length, length)
    return np.asarray(np.nan_to_num(found, nan=1.0))


def _unrelated(
    allowed: npt.NDArray[np.int64],
    k: int,
    related: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return k of the allowed concepts, no two of which are related, in random order."""
    for _ in range(200):
        chosen: list[int] = []
        for concept in rng.permutation(allowed):
            if not related[concept, chosen].any():
                chosen.append(int(concept))
            if len(chosen) == k:
                return np.array(chosen)
    raise DataError(
        f"no {k} of {len(allowed)} concepts are unrelated (correlation below {UNRELATED}) in these "
        "images; plant fewer concepts a unit"
    )
