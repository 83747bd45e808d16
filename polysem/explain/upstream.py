"""What made each unit fire one layer up: shares of its exemplars' activation by upstream unit.

Other commands read the shares with `Run.upstream` and need neither model nor images; divided into
groups they are the circuits that a unit takes part in (`analysis.circuits`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import NonFiniteError, RunError, SpecError
from polysem.explain.run_exemplars import (
    Attributed,
    Exemplars,
    attribute,
    is_bcos,
    open_again,
    site_exemplars,
)
from polysem.models.load import LoadedModel
from polysem.sites import parse_site, select_sites
from polysem.store.additions import add_arrays
from polysem.store.run import Run

__all__ = ["UPSTREAM", "previous_sites", "unit_contributions", "upstream"]

#: Name of the arrays in the run.
UPSTREAM = "upstream"

#: Sites whose units are neurons or channels, and what they are traced to: the same, earlier. The
#: neurons before classification are traced to the last of either.
_NEURONS = ("mlp.hook_post", "hook_post")

#: Added to the sum of what is shared out, as in PURE.
_TINY = 1e-10


def upstream(
    run: Run | str | Path,
    model: str | Path | LoadedModel,
    *,
    sites: str | Iterable[str] | None = None,
    data: str | ImageData | None = None,
    exemplars: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Write for each exemplar of each unit which units of the previous site made it fire.

    The activation where the exemplar peaks is attributed to the previous recorded site of the
    same kind, ``R_j = Σ_tokens a_j ∂y/∂a_j``, of B-cos networks ``a ⊙ W(a)``; kept is
    ``R / (Σ|R| + 1e-10)``. What reaches the unit around that site, by skip connections, is not
    shared out. PURE (Dreyer et al. 2024, arXiv 2404.06453), which takes all places of a channel
    together instead of the strongest.

    Parameters
    ----------
    run : Run or path
    model : str, Path or LoadedModel
        The model that the run was probed with.
    sites : str or iterable of str, optional
        Globs over the run's sites: neurons of MLPs, channels, and the pooled neurons. By default
        the last site of neurons or channels alone, as 16 exemplars of 1,024 units that have 1,024
        units before them take 64 MB for each tail.
    data : str or ImageData, optional
        Where the images are, if they have moved.
    exemplars : int, optional
        Only so many of each tail; all that the run has by default.
    device : str, default "auto"
    progress : bool, default True

    Returns
    -------
    Path
        The store, ``upstream.zarr``, with a group for each site: ``share`` [tail, unit, rank,
        source_unit]; ``value`` and ``explained`` [tail, unit, rank]. ``attrs`` name
        the ``source``.

    Raises
    ------
    RunError
        If the run was probed with other weights, or has no exemplars there.
    DataError
        If the images are not those of the run.
    SpecError
        If no site matches, none has a site of its kind before it, or an option is out of range.
    NonFiniteError
        If a share is not finite.
    """
    if exemplars is not None and exemplars < 1:
        raise SpecError(f"exemplars must be at least 1, not {exemplars}")
    opened = run if isinstance(run, Run) else Run.open(run)
    starts = _chosen(opened, sites)
    found = {site: site_exemplars(opened, site, exemplars) for site in starts}
    if not any(len(each.image) for each in found.values()):
        raise RunError(
            f"{opened.path} has no exemplars at {', '.join(found)}: no unit fired there, so there "
            "is nothing to trace; probe other images, or name other --sites"
        )
    loaded, source = open_again(opened, model, data, device)
    shares = _Shares(found, {site: opened.units(s).sizes["unit"] for site, s in starts.items()})
    attribute(loaded, source, found, shares.take, starts=starts, progress=progress)
    method = "bcos" if is_bcos(loaded) else "input_gradient"
    arrays = {
        site: shares.dataset(site).assign_attrs(
            source=start, method=method, model_sha256=loaded.sha256
        )
        for site, start in starts.items()
    }
    return add_arrays(opened, UPSTREAM, arrays, keep=True)


def previous_sites(sites: Iterable[str]) -> dict[str, str]:
    """Return for each site that has one the previous site of its kind, in network order.

    >>> previous_sites(["blocks.0.mlp.hook_post", "blocks.3.mlp.hook_post", "hook_pooled"])
    {'blocks.3.mlp.hook_post': 'blocks.0.mlp.hook_post', 'hook_pooled': 'blocks.3.mlp.hook_post'}
    """
    found: dict[str, str] = {}
    last: str | None = None
    for name in sites:
        neurons = parse_site(name).part in _NEURONS
        if last is not None and (neurons or name == "hook_pooled"):
            found[name] = last
        if neurons:
            last = name
    return found


def unit_contributions(some: Attributed) -> Tensor:
    """Return what each upstream unit contributed [row, image, source_unit], over tokens or places.

    The sum is the unit's activation, or what of it comes through the site.
    """
    maps = some.contribution.ndim == 5  # channels come before their places, tokens before neurons
    return some.contribution.sum((3, 4) if maps else 2)


def _chosen(run: Run, sites: str | Iterable[str] | None) -> dict[str, str]:
    before = previous_sites(run.sites)
    if sites is None:
        neurons = [site for site in before if site != "hook_pooled"]
        chosen = (neurons or list(before))[-1:]
    else:
        chosen = select_sites(run.sites, sites)
    starts = {site: before[site] for site in chosen if site in before}
    if not starts:
        what = f"{', '.join(chosen)} of {run.path}" if chosen else str(run.path)
        raise SpecError(
            f"{what} cannot be traced upstream: neurons of an MLP, channels and pooled neurons "
            f"are, to an earlier site of neurons or channels that the run has; it has "
            f"{', '.join(run.sites)}"
        )
    return starts


class _Shares:
    """The shares of all sites, filled as they come."""

    def __init__(self, found: dict[str, Exemplars], n_source: dict[str, int]) -> None:
        self.found = found
        # not in half precision, whose steps would be taken for groups of exemplars
        self.share = {
            name: np.full((*each.shape, n_source[name]), np.nan, np.float32)
            for name, each in found.items()
        }
        self.value = {n: np.full(each.shape, np.nan, np.float32) for n, each in found.items()}
        self.explained = {n: np.full(each.shape, np.nan, np.float32) for n, each in found.items()}

    def take(self, some: Attributed) -> None:
        """Keep the shares of some exemplars."""
        parts = unit_contributions(some)
        shares = parts / (parts.abs().sum(-1, keepdim=True) + _TINY)
        some.fill(self.share[some.site], shares)
        some.fill(self.value[some.site], some.value)
        some.fill(self.explained[some.site], parts.sum(-1))

    def dataset(self, name: str) -> xr.Dataset:
        """Return the shares of a site with what they mean.

        Raises
        ------
        NonFiniteError
            If one is not finite.
        """
        each = self.found[name]
        if not np.isfinite(self.share[name][each.at]).all():
            raise NonFiniteError(
                f"what made {name} fire holds NaN or infinite values: the weights are at fault; "
                "nothing was written"
            )
        top = ("tail", "unit", "rank")
        variables = {
            "share": xr.Variable(
                (*top, "source_unit"), self.share[name],
                {"long_name": "contribution of each unit of the source to firing in the tail, over "
                 "the sum of their sizes, -1 to 1 (PURE, Dreyer et al. 2404.06453)"},
            ),
            "value": xr.Variable(
                top, self.value[name],
                {"long_name": "how strongly the unit fired where it peaked; the lower tail's "
                 "negative"},
            ),
            "explained": xr.Variable(
                top, self.explained[name],
                {"long_name": "sum of the contributions: what of the activation came through the "
                 "source"},
            ),
        }  # fmt: skip
        return xr.Dataset(variables, coords={"tail": np.array(each.tails, dtype=object)})
