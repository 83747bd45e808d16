"""Random numbers that depend on a key and nothing else, for the scenes that ``scenes`` lays out.

A counter is hashed (the finaliser of SplitMix64: Steele, Lea, Flood 2014) instead of a generator
being stepped: any number can be had without those before it, whole columns at a time, and integer
arithmetic makes it the same on every platform and in every NumPy release.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["fold", "keys_of", "uniforms"]

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = 2**64 - 1


def fold(*parts: int) -> int:
    """Return one 64-bit key for a sequence of whole numbers; another order is another key.

    >>> fold(0, 1) != fold(1, 0)
    True
    """
    key = 0
    for part in parts:
        key = int(_hash(np.array([(key ^ (part & _MASK)) & _MASK], dtype=np.uint64))[0])
        key = (key + _GOLDEN) & _MASK
    return key


def keys_of(key: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return a key of its own for each index, all drawn from one key."""
    counter = indices.astype(np.uint64) + np.uint64(1)
    return _hash(counter * np.uint64(_GOLDEN) + np.uint64(key))


def uniforms(keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.float64]:
    """Return `count` numbers in [0, 1) for each key, as an array [key, number].

    The first numbers do not change when more are asked for.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = _hash(keys[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hash(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(_FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
    return mixed ^ (mixed >> np.uint64(31))
