"""The faces of a site: each tail in which its units fire, as activations that grow towards it.

A unit that fires in both directions may answer to one thing upwards and to another downwards;
analyses therefore treat the two tails as two faces of one unit. The lower face is the negative of
the activation, so that more is more on either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xarray as xr

from polysem.analysis.scaling import Floats
from polysem.sites import select_sites
from polysem.store.run import Run
from polysem.store.schema import ranking_pool

__all__ = ["Face", "chosen_sites", "faces"]

#: Numbers [image, unit] that are worked on at once.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Face:
    """One tail of the units of one site.

    Attributes
    ----------
    run : Run
    site, tail, pool : str
        The pool is the one that ranks the tail's exemplars.
    units : Dataset
        All that the run says of the site.
    """

    run: Run
    site: str
    tail: str
    pool: str
    units: xr.Dataset

    @property
    def sign(self) -> int:
        """-1 for a lower tail."""
        return -1 if self.tail == "lower" else 1

    @property
    def n_units(self) -> int:
        """Units of the site."""
        return int(self.units.sizes["unit"])

    def moment(self, name: str) -> npt.NDArray[np.float64]:
        """Return a statistic of the pool over all images [..., unit], as stored: not turned."""
        return self.units[name].sel(pool=self.pool).to_numpy().astype(np.float64)

    @cached_property
    def smallest(self) -> npt.NDArray[np.float64]:
        """The smallest activation of each unit towards this tail [unit]."""
        return self.moment("min") if self.sign > 0 else -self.moment("max")

    @cached_property
    def constant(self) -> npt.NDArray[np.bool_]:
        """Whether the unit gave the same value on all images [unit]."""
        return np.asarray(self.moment("min") == self.moment("max"))

    @property
    def of_tail(self) -> xr.Dataset:
        """What the run says of this tail."""
        return self.units.sel(tail=self.tail)

    @property
    def complete(self) -> bool:
        """Whether the activations of all images are stored, not those of a sample alone."""
        return "pooled" in self.units

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Row in ``run.images`` of each image whose activation is stored."""
        if self.complete:
            return np.arange(self.units.sizes["image"])
        return self.rows_of(self.units["sample_image"].to_numpy())

    def rows_of(self, images: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the rows in ``run.images`` of indices into the data."""
        return np.searchsorted(self.run.images["image"].to_numpy(), np.asarray(images, np.int64))

    @cached_property
    def activations(self) -> Floats:
        """Stored activations [image, unit], float32, turned so that more is more."""
        name = "pooled" if self.complete else "sample_value"
        values = self.units[name].sel(pool=self.pool).to_numpy().astype(np.float32, copy=False)
        return values if self.sign > 0 else -values

    def chunks(self) -> Iterator[slice]:
        """Yield slices of units whose activations are worked on at once."""
        size = max(1, _CHUNK // max(1, len(self.rows)))
        for start in range(0, self.n_units, size):
            yield slice(start, start + size)


def faces(run: Run, site: str) -> list[Face]:
    """Return the faces of a site: the upper tail, and the lower where units fire both ways."""
    units = run.units(site)
    pools = [str(p) for p in units["pool"].to_numpy()]
    tails = [str(t) for t in units["tail"].to_numpy()]
    return [Face(run, site, tail, ranking_pool(pools, tail), units) for tail in tails]


def chosen_sites(run: Run, globs: str | None) -> list[str]:
    """Return the sites of a run that globs name, or all of them.

    Raises
    ------
    SpecError
        If a glob matches nothing.
    """
    return run.sites if globs is None else select_sites(run.sites, globs)
