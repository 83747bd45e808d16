"""The hash is compared with SplitMix64 in Python's own integers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polysem.data.dice import fold, keys_of, uniforms

MASK = 2**64 - 1
KEYS = st.integers(0, MASK)


def splitmix(key: int, count: int) -> list[float]:
    numbers = []
    state = key
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
        numbers.append((z >> 11) / 2**53)
    return numbers


@given(keys=st.lists(KEYS, min_size=1, max_size=3), count=st.integers(1, 5))
def test_uniforms_are_splitmix64(keys: list[int], count: int) -> None:
    drawn = uniforms(np.array(keys, dtype=np.uint64), count)
    assert drawn.tolist() == [splitmix(key, count) for key in keys]


@given(key=KEYS, index=st.integers(0, 10**7))
def test_a_key_depends_on_its_own_index_only(key: int, index: int) -> None:
    together = keys_of(key, np.array([3, index, 5]))
    assert together[1] == keys_of(key, np.array([index]))[0]


def test_streams_look_uniform_and_unrelated() -> None:
    one = uniforms(keys_of(fold(0, 0), np.arange(20_000)), 2)
    other = uniforms(keys_of(fold(0, 1), np.arange(20_000)), 2)
    columns = np.column_stack([one, other, np.roll(one[:, 0], 1)])
    assert np.all(abs(columns.mean(axis=0) - 0.5) < 5 * 0.2887 / 20_000**0.5)
    away = np.corrcoef(columns.T) - np.eye(5)
    assert np.all(abs(away) < 5 / 20_000**0.5)


def test_fold_tells_order_and_length_apart() -> None:
    parts = [(), (0,), (0, 0), (0, 1), (1, 0), (1,), (2**63 - 1, 1)]
    assert len({fold(*part) for part in parts}) == len(parts)
