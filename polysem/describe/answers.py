"""What a run tells of its units for naming them: where to find names, and where to test them.

A name is found on some images and tested on others. With every pooled activation at hand (a probe
with ``--pooled``) the images are halved; without, names come from the exemplars, and are tested on
the run's random sample of images less the exemplars of the unit in question.

Heads are units too: by how much they write, or by how much the network needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polysem.errors import RunError
from polysem.store.run import Run
from polysem.store.schema import ranking_pool

__all__ = ["Answers", "read_answers", "read_head_answers"]


@dataclass(frozen=True)
class Answers:
    """What the units of one face (one tail of one site) did.

    Attributes
    ----------
    site, tail : str
    exemplars : int64 Tensor
        [unit, rank]: rows of `Run.images`, best first, -1 where there is none.
    found_on : int64 Tensor
        [image]: rows that names are found on, for methods of activations.
    activations : Tensor
        [image, unit] on `found_on`, upwards for either tail.
    tested_on : int64 Tensor
        [image]: other rows.
    held_out : Tensor
        [image, unit] on `tested_on`, upwards; NaN where an exemplar of the unit is among them.
    ranked : int64 Tensor or None
        [unit, rank]: the exemplars that the probe kept, of which places are known; these are
        among all images, and may be among those tested on.
    """

    site: str
    tail: str
    exemplars: Tensor
    found_on: Tensor
    activations: Tensor
    tested_on: Tensor
    held_out: Tensor
    ranked: Tensor | None = None

    @property
    def less_ranked(self) -> Tensor:
        """`held_out` without the probe's exemplars of each unit either."""
        if self.ranked is None:
            return self.held_out
        return self.held_out.masked_fill(_among(self.tested_on, self.ranked), torch.nan)


def read_answers(run: Run, site: str, *, n_exemplars: int = 100) -> Iterator[Answers]:
    """Yield what each face of a site's units did, the upper tail first.

    Parameters
    ----------
    run : Run
    site : str
    n_exemplars : int
        Exemplars per unit where every activation is kept; else as many as the probe ranked.

    Raises
    ------
    SpecError
        If the run has no such site.
    RunError
        If the run has neither exemplars nor pooled activations.
    """
    units = run.units(site)
    row_of = _row_of(run)
    signed = bool(run.manifest["sites"][site]["signed"])
    for tail in run.manifest["sites"][site]["tails"]:
        pool = ranking_pool(list(units["pool"].values), tail)
        sign = 1.0 if tail == "upper" else -1.0
        top = units["top_image"].sel(tail=tail).values if "top_image" in units else None
        if top is None and "pooled" not in units:
            raise RunError(f"{run.path} has no exemplars of {site}; probe again")
        ranked = None
        if top is not None:
            ranked = torch.from_numpy(_rows(top, row_of))
            ranked[torch.from_numpy(units["dead"].values)] = -1  # one image is as good as another
        if "pooled" in units:
            values = sign * torch.from_numpy(units["pooled"].sel(pool=pool).values)
            rows = torch.arange(len(values))
            yield _halved(site, tail, values, rows, n_exemplars, not signed, ranked)
            continue
        assert ranked is not None
        sample = torch.from_numpy(row_of[units["sample_image"].values.astype(np.int64)])
        values = sign * torch.from_numpy(units["sample_value"].sel(pool=pool).values)
        held_out = values.masked_fill(_among(sample, ranked), torch.nan)
        yield Answers(site, tail, ranked, sample, values, sample, held_out, ranked)


def read_head_answers(run: Run, *, n_exemplars: int = 100) -> Iterator[Answers]:
    """Yield what the heads of a run did, by how much they write and by how much they are needed.

    `Answers.site` says by what: ``norm``, the mean length of a head's output over patches, or
    ``importance``, the rise of the cost with the head's output replaced by zero, where ``polysem
    heads`` measured it. Heads count layer by layer.

    Raises
    ------
    RunError
        If the run holds no heads.
    """
    norms = torch.from_numpy(run.heads["output_norm"].values).flatten(1)
    rows = torch.arange(len(norms))
    yield _halved("norm", "upper", norms, rows, n_exemplars, True, None)
    if (run.path / "gates.zarr").is_dir():
        gates = run.gates
        rise = torch.from_numpy((gates["cost_zero"] - gates["cost"]).values).flatten(1)
        rows = torch.from_numpy(_row_of(run)[gates["image"].values.astype(np.int64)])
        yield _halved("importance", "upper", rise, rows, n_exemplars, False, None)


def _halved(
    site: str,
    tail: str,
    values: Tensor,
    rows: Tensor,
    n_exemplars: int,
    bounded: bool,
    ranked: Tensor | None,
) -> Answers:
    """Return answers from activations [image, unit] of all of some rows."""
    found, tested = _halves(len(values))
    exemplars = _exemplars(values[found], rows[found], n_exemplars, bounded=bounded)
    return Answers(
        site, tail, exemplars, rows[found], values[found], rows[tested], values[tested], ranked
    )


def _row_of(run: Run) -> npt.NDArray[np.int64]:
    """Return the row in `Run.images` of each index into the data, -1 where there is none."""
    row_of = np.full(int(run.images["image"].max()) + 1, -1)
    row_of[run.images["image"]] = np.arange(len(run.images))
    return row_of


def _halves(n_images: int) -> tuple[Tensor, Tensor]:
    """Return rows drawn for finding names and the others for testing them, ascending."""
    order = torch.randperm(n_images, generator=torch.Generator().manual_seed(0))
    middle = (n_images + 1) // 2
    return order[:middle].sort().values, order[middle:].sort().values


def _rows(images: np.ndarray, row_of: np.ndarray) -> np.ndarray:
    known = ~np.isnan(images)
    return np.where(known, row_of[np.where(known, images, 0).astype(np.int64)], -1)


def _exemplars(values: Tensor, rows: Tensor, k: int, *, bounded: bool) -> Tensor:
    top = values.T.contiguous().topk(min(k, len(values)), dim=1)
    nothing = (values == values[:1]).all(dim=0)[:, None]
    if bounded:  # what cannot fire below zero has no exemplar that does not fire
        nothing = nothing | (top.values <= 0)
    return torch.where(nothing, -1, rows[top.indices])


def _among(sample: Tensor, exemplars: Tensor) -> Tensor:
    """Return whether a sampled image is an exemplar of a unit [image, unit]."""
    found = torch.zeros(len(sample), len(exemplars), dtype=torch.bool)
    for rank in exemplars.T:
        found |= sample[:, None] == rank[None]
    return found
