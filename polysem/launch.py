"""How many processes a launcher has started together, and which of them this one is.

``torchrun`` and ``accelerate launch`` tell each process by its environment; so may anybody who
starts the processes of one piece of work by hand, on one machine or several.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from polysem.errors import SpecError

__all__ = ["Launch", "forget_the_others", "launched"]


@dataclass(frozen=True)
class Launch:
    """One process among those that were started together.

    Attributes
    ----------
    number, count : int
        Which it is, from 0, and how many there are.
    local : int
        Which it is on its machine: the number of its GPU.
    """

    number: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.number == 0

    def share(self, n: int) -> range:
        """Return which of n things in order are this one's: consecutive, and as even as can be.

        >>> [list(Launch(number, 3).share(7)) for number in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
        """
        return range(n * self.number // self.count, n * (self.number + 1) // self.count)


def launched() -> Launch:
    """Return which process this is, by the variables RANK, WORLD_SIZE and LOCAL_RANK.

    Raises
    ------
    SpecError
        If they make no sense.
    """
    number, count, local = (
        _whole(name, default)
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if not 0 <= number < count:
        raise SpecError(f"RANK is {number} of WORLD_SIZE {count}; it runs from 0 to one below")
    return Launch(number, count, local)


def forget_the_others() -> None:
    """Make this process work alone from now on, for what cannot be shared."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def _whole(name: str, default: int) -> int:
    told = os.environ.get(name, str(default))
    if not told.isdecimal():
        raise SpecError(f"the environment variable {name} is {told!r}, not a whole number")
    return int(told)
