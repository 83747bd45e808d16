"""Maps of exemplars in four bits: against a slow statement of what they hold."""

from __future__ import annotations

import base64

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polysem.report.exemplars import activating_region
from polysem.report.site.packed import firing_levels, packed_rows, signed_levels


def unpacked(text: str, n: int) -> list[int]:
    data = base64.b64decode(text)
    return [data[i // 2] & 15 if i % 2 else data[i // 2] >> 4 for i in range(n)]


@given(st.lists(st.integers(0, 15), min_size=1, max_size=31))
def test_what_is_packed_comes_back(levels: list[int]) -> None:
    (text,) = packed_rows(np.array([levels], dtype=np.uint8))
    assert unpacked(text, len(levels)) == levels


def test_rows_are_packed_each_for_itself() -> None:
    levels = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5) % 16
    for row, text in zip(levels, packed_rows(levels), strict=True):
        assert unpacked(text, 15) == row.reshape(-1).tolist()


def test_firing_is_the_way_from_the_mean_to_the_peak() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 5, 7))
    base = np.array([-0.2, 9.0])  # no peak of the second unit reaches its mean
    for lower in (False, True):
        found = firing_levels(maps, base, lower=lower)
        for unit in range(2):
            for rank in range(3):
                values = -maps[unit, rank] if lower else maps[unit, rank]
                start = -base[unit] if lower else base[unit]
                start = start if start < values.max() else values.min()
                share = np.clip((values - start) / (values.max() - start), 0, 1)
                assert np.abs(found[unit, rank] / 15 - share).max() <= 0.5 / 15 + 1e-6


def test_the_outline_is_that_of_other_pictures() -> None:
    one = np.random.default_rng(1).gamma(1.0, size=(6, 6)).astype("f4")
    region = activating_region(one, base=0.3)
    assert region is not None
    level = region[1]
    inside = firing_levels(one[None, None], np.array([0.3]))[0, 0] >= 8
    assert np.array_equal(inside, one > level)


def test_a_flat_map_and_a_rank_without_exemplar_have_no_region() -> None:
    maps = np.stack([np.full((2, 2), 3.0), np.full((2, 2), np.nan)])[None]
    assert not firing_levels(maps, np.array([0.0])).any()


def test_signed_maps_keep_sign_and_share() -> None:
    maps = np.array([[[[-2.0, 0.0], [1.0, 2.0]], [[np.nan] * 2] * 2, [[0.0] * 2] * 2]])
    found = signed_levels(maps)
    assert found[0, 0].tolist() == [[1, 8], [12, 15]]
    assert (found[0, 1:] == 8).all()
