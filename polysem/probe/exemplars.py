"""The images that excite each unit most: an exact, order-free top-k with activation maps."""

from __future__ import annotations

import torch
from torch import Tensor

from polysem.probe.accumulators import Accumulator

__all__ = ["MOST_IMAGES", "Exemplars"]

_CHUNK_BYTES = 1 << 19

#: Share of a batch's values that may enter below which these are looked at one by one.
_FEW = 0.05

#: Doubles that hold a float32 have 29 zero bits at the end: room for an image index.
_INDEX_BITS = 29
_INDEX_MASK = (1 << _INDEX_BITS) - 1

#: Images that can be told apart so.
MOST_IMAGES = 1 << _INDEX_BITS


def _order_keys(values: Tensor, images: Tensor) -> Tensor:
    """Return float64 keys that order by value and, between equal values, by image index.

    The index sits in the mantissa bits that a float32 leaves empty, so that keys are unique, the
    earlier of two tied images has the larger key, and both parts can be read back exactly.
    """
    wide = values.double() + 0.0  # -0.0 becomes 0.0
    images = images.view(-1, *[1] * (values.ndim - 1))
    # a larger magnitude is a smaller number where the value is negative
    low = torch.where(wide >= 0, _INDEX_MASK - images, images)
    return (wide.view(torch.int64) | low).view(torch.float64)


def _read_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    bits = keys.view(torch.int64)
    values = (bits & ~_INDEX_MASK).view(torch.float64)
    low = bits & _INDEX_MASK
    return values, torch.where(keys >= 0, _INDEX_MASK - low, low)


class Exemplars(Accumulator):
    """The k images that activate each unit most, with where they do and the activation map.

    The selection is a function of the set of (value, image) pairs alone: between equal values
    the lower image index wins, so order, batches and shards cannot change it. Slots without an
    exemplar hold -inf and come out as NaN.

    Parameters
    ----------
    k : int
        Exemplars per unit.
    n_units, n_positions : int
        Units, and positions of the map (0 for a site without one).
    lower : bool, default False
        Keep the lowest instead of the highest values.
    only_firing : bool, default False
        Take only values above 0 (for units that cannot fire below it: a rectified unit at 0 has
        no exemplars).
    device : torch.device or str
        Where the activations are.
    """

    _names = ("keys", "maps", "positions")

    def __init__(
        self,
        k: int,
        n_units: int,
        n_positions: int,
        *,
        lower: bool = False,
        only_firing: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.lower, self.only_firing = lower, only_firing
        self.keys = torch.full((k, n_units), -torch.inf, dtype=torch.float64, device=device)
        self.maps = torch.zeros(n_units, k, n_positions, dtype=torch.float16, device=device)
        self.positions = torch.zeros(n_units, k, dtype=torch.int32, device=device)

    def update(self, values: Tensor, images: Tensor, maps: Tensor | None = None) -> None:
        """Offer a batch.

        Parameters
        ----------
        values : Tensor
            Pooled activations [image, unit], float32.
        images : Tensor
            Index of each image in the data, int64 [image], below 2**29.
        maps : Tensor or None
            The activations themselves, [image, unit, position] (any strides: a view will do).
        """
        signed = -values if self.lower else values
        if signed.is_cuda:  # to ask which values may enter would be to wait
            best, rows = self._best_of_all(signed, images)
            self._enter(self.keys, best, rows, maps)
            return
        worst = (self.keys.amin(0).view(torch.int64) & ~_INDEX_MASK).view(torch.float64)
        may_enter = signed >= worst.float()
        counts = may_enter.sum(0)
        units = counts.nonzero()[:, 0]
        if not len(units):
            return
        if int(counts.sum()) > _FEW * signed.numel():
            best, rows = self._best_of_all(signed[:, units], images)
        else:
            best, rows = self._best_of_few(signed, images, may_enter, counts[units])
        kept = self.keys[:, units]
        self._enter(kept, best, rows, maps, units)
        self.keys[:, units] = kept

    def _best_of_all(self, signed: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best keys of a batch and their rows [rank, unit], best first."""
        keys = _order_keys(signed, images)
        if self.only_firing:
            keys = torch.where(signed > 0, keys, -torch.inf)
        best, rows = keys.topk(min(len(self.keys), len(keys)), dim=0)
        return best, rows

    def _best_of_few(
        self, signed: Tensor, images: Tensor, may_enter: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the same of those units that have any, looking at the values that may enter."""
        unit, row = may_enter.T.nonzero(as_tuple=True)
        found = signed[row, unit]
        keys = _order_keys(found, images[row])
        if self.only_firing:
            keys = torch.where(found > 0, keys, -torch.inf)
        order = keys.argsort(descending=True)
        order = order[unit[order].argsort(stable=True)]
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        column = torch.arange(len(counts)).repeat_interleave(counts)
        taken = rank < len(self.keys)
        rank, column, order = rank[taken], column[taken], order[taken]
        most = int(rank.max()) + 1
        best = torch.full((most, len(counts)), -torch.inf, dtype=torch.float64)
        rows = torch.zeros(most, len(counts), dtype=torch.int64)
        best[rank, column], rows[rank, column] = keys[order], row[order]
        return best, rows

    def _enter(
        self,
        kept: Tensor,
        best: Tensor,
        rows: Tensor,
        maps: Tensor | None,
        units: Tensor | None = None,
    ) -> None:
        """Put the best of a batch in place of the worst in `kept`, the keys of all units or some.

        The i-th best newcomer can only displace the i-th worst incumbent.
        """
        worst, slots = kept.topk(len(best), dim=0, largest=False)
        enters = best > worst
        kept.scatter_(0, slots, torch.where(enters, best, worst))
        if maps is not None:
            capture = self._capture_dense if maps.is_cuda else self._capture_sparse
            capture(maps, rows, slots, enters, units)

    def _capture_sparse(
        self, maps: Tensor, rows: Tensor, slots: Tensor, enters: Tensor, units: Tensor | None
    ) -> None:
        """Copy the maps of newcomers only: after the first batches there are few."""
        i, unit = enters.nonzero(as_tuple=True)
        slot, row = slots[i, unit], rows[i, unit]
        unit = unit if units is None else units[unit]
        # neighbouring units of one image lie in the same cache lines
        order = (row * maps.shape[1] + unit).argsort()
        # a few maps at a time stay in the cache between the steps
        for some in order.split(max(1, _CHUNK_BYTES // (4 * maps.shape[2]))):
            units, where = unit[some], slot[some]
            found = maps[row[some], units]
            self.positions[units, where] = self._peak(found).int()
            self.maps[units, where] = found.half()

    def _capture_dense(
        self, maps: Tensor, rows: Tensor, slots: Tensor, enters: Tensor, units: Tensor | None
    ) -> None:
        """Copy a map for every slot and keep the newcomers': no wait to learn how many they are."""
        unit = torch.arange(maps.shape[1], device=maps.device) if units is None else units
        unit = unit[:, None]
        rows, slots, enters = rows.T, slots.T, enters.T  # [unit, rank]
        found = maps[rows, unit]
        position = torch.where(enters, self._peak(found).int(), self.positions[unit, slots])
        self.positions[unit, slots] = position
        self.maps[unit, slots] = torch.where(
            enters[..., None], found.half(), self.maps[unit, slots]
        )

    def _peak(self, maps: Tensor) -> Tensor:
        return maps.argmin(-1) if self.lower else maps.argmax(-1)

    def merge(self, other: Exemplars) -> None:
        """Keep the best of both; they must not have seen the same image."""
        keys = torch.cat([self.keys, other.keys])
        self.keys, rows = keys.topk(len(self.keys), dim=0)
        unit = torch.arange(keys.shape[1], device=keys.device)[:, None]
        self.maps = torch.cat([self.maps, other.maps], dim=1)[unit, rows.T]
        self.positions = torch.cat([self.positions, other.positions], dim=1)[unit, rows.T]

    def ranked(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return values, images, positions and maps in order of rank, best first.

        Returns
        -------
        values : float64 [unit, rank], NaN where there is no exemplar
        images : float64 [unit, rank], NaN where there is no exemplar
        positions : float64 [unit, rank], index into the flattened map, NaN likewise
        maps : float16 [unit, rank, position], NaN likewise
        """
        keys, order = self.keys.T.sort(dim=1, descending=True)
        values, images = _read_keys(keys)
        empty = keys == -torch.inf
        unit = torch.arange(len(order), device=order.device)[:, None]
        nan = torch.tensor(torch.nan, dtype=torch.float64, device=order.device)
        limit = torch.finfo(torch.float16).max
        maps = self.maps[unit, order].clamp_(-limit, limit)
        maps.masked_fill_(empty[..., None], torch.nan)
        positions = torch.where(empty, nan, self.positions[unit, order].double())
        values = torch.where(empty, nan, -values if self.lower else values)
        return values, torch.where(empty, nan, images.double()), positions, maps
