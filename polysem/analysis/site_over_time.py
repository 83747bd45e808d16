"""The units of one site over time, held against the final network and the preceding snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polysem.analysis.faces import Face, faces
from polysem.analysis.matching import (
    correlations,
    covariances,
    deviations,
    linear_cka,
    match_units,
)
from polysem.store.run import Run

__all__ = ["SiteOverTime", "site_over_time"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SiteOverTime:
    """One site over all snapshots, earliest first; units are numbered as in the final network.

    Attributes
    ----------
    tails : tuple of str
        Faces of its units.
    dead : bool array [step, unit]
        Whether the unit of this index gives the same value on all images.
    correlation, previous_correlation : float64 array [step, tail, unit]
        With the unit of the same index in the final network, and in the preceding snapshot; NaN
        where one is constant, and before the first.
    match, previous_match : int64 array [step, unit]
        The unit of the snapshot that a unit of the final network is matched to; and the unit of
        the preceding snapshot that this snapshot's is matched to; -1 for none.
    matched_correlation : float64 array [step, tail, unit]
        Of the match with the final unit.
    cka_final, cka_previous : float64 array [step]
        Linear CKA of the whole site, by its first face.
    """

    tails: tuple[str, ...]
    dead: npt.NDArray[np.bool_]
    correlation: Floats
    previous_correlation: Floats
    match: Ints
    previous_match: Ints
    matched_correlation: Floats
    cka_final: Floats
    cka_previous: Floats


def site_over_time(runs: Sequence[Run], site: str) -> SiteOverTime:
    """Compare a site of every snapshot with the final network and with its predecessor.

    Units are matched one to one by the correlation of their pooled activations over images, the
    mean over their faces. Networks are held in pairs, so that memory grows neither with images nor
    with snapshots.

    Parameters
    ----------
    runs : sequence of Run
        Earliest first; on the same images, probed with ``pooled``.
    site : str
    """
    each = [faces(run, site) for run in runs]
    final, last = each[-1], len(each) - 1
    shape = (len(each), len(final), final[0].n_units)
    correlation, previous, matched = (np.full(shape, np.nan) for _ in range(3))
    match, previous_match = (np.full((shape[0], shape[2]), -1, dtype=np.int64) for _ in range(2))
    cka_final, cka_previous = (np.full(len(each), np.nan) for _ in range(2))
    own_final = covariances(final[0], final[0])
    before = own_before = own_final[:0, :0]
    for step, here in enumerate(each):
        own = own_final if step == last else covariances(here[0], here[0])
        likeness, cka_final[step] = _compare(here, final, own, own_final)
        match[step] = match_units(likeness)
        correlation[step] = likeness.diagonal(axis1=1, axis2=2)
        matched[step] = _of_matches(likeness, match[step])
        if step == last:  # the final network against the one before: known from that one
            back, cka_previous[step] = before, cka_final[step - 1]
        elif step > 0:
            back, cka_previous[step] = _compare(each[step - 1], here, own_before, own)
        if step > 0:
            previous_match[step] = match_units(back)
            previous[step] = back.diagonal(axis1=1, axis2=2)
        before, own_before = likeness, own
    return SiteOverTime(
        tuple(face.tail for face in final),
        np.array([some[0].units["dead"].to_numpy() for some in each]),
        correlation, previous, match, previous_match, matched, cka_final, cka_previous,
    )  # fmt: skip


def _compare(
    first: Sequence[Face], second: Sequence[Face], own_first: Floats, own_second: Floats
) -> tuple[Floats, float]:
    """Return correlations [tail, unit of first, unit of second], and the CKA of first faces."""
    known: dict[str, Floats] = {}  # the two faces of a site without tokens are one number, turned
    for a, b in zip(first, second, strict=True):
        if a.pool not in known:
            known[a.pool] = covariances(a, b)
    likeness = [
        correlations(known[a.pool], deviations(a), deviations(b))
        for a, b in zip(first, second, strict=True)
    ]
    return np.array(likeness), linear_cka(known[first[0].pool], own_first, own_second)


def _of_matches(likeness: Floats, match: Ints) -> Floats:
    """Return the correlation of each unit of the second network with its match [tail, unit]."""
    found = likeness[:, match, np.arange(len(match))]
    return np.asarray(np.where(match >= 0, found, np.nan))
