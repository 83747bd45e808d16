"""Random access to rows that a file only yields forwards; between table files and ``ImageData``.

Row groups of parquet files and members of archives can be read from their start only. `BlockReader`
reads them block by block, keeps the blocks last used up to a fixed number of bytes, and so serves
both a probe (in order: every block is read once) and shuffled training (from memory where the data
fits), without ever holding more than that.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, TypeVar

from polysem.errors import DataError

__all__ = ["BLOCK_BYTES", "CACHE_BYTES", "Block", "BlockReader"]

#: What a reader should aim at for one block.
BLOCK_BYTES = 16 * 2**20
#: What the blocks of one reader may hold in one process.
CACHE_BYTES = 256 * 2**20

Rows = TypeVar("Rows")


@dataclass(frozen=True)
class Block(Generic[Rows]):
    """Consecutive rows of one part: `count` of them, taking `nbytes` of memory."""

    rows: Rows
    count: int
    nbytes: int


@dataclass
class _Held(Generic[Rows]):
    """What one process holds: blocks by their first row, and the part being read."""

    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    blocks: OrderedDict[int, Block[Rows]] = field(default_factory=OrderedDict)
    firsts: list[int] = field(default_factory=list)
    nbytes: int = 0
    part: int = -1
    stream: Iterator[Block[Rows]] = field(default_factory=lambda: iter(()))
    next_row: int = 0


class BlockReader(Generic[Rows]):
    """Rows of several parts, counted through, by number.

    May be pickled and shared between threads; a forked or unpickled copy opens its own files.

    Parameters
    ----------
    counts : sequence of int
        Number of rows in each part.
    open_part : callable
        Given the number of a part, yields its rows in order, in blocks. Must pickle.
    cache_bytes : int
        How much the blocks kept may hold; the block last read is kept in any case.
    """

    def __init__(
        self,
        counts: Sequence[int],
        open_part: Callable[[int], Iterator[Block[Rows]]],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._starts = [0, *accumulate(counts)]
        self._open_part = open_part
        self._cache_bytes = cache_bytes
        self._held: _Held[Rows] = _Held()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_held"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._held = _Held()

    def __len__(self) -> int:
        return self._starts[-1]

    def stream(self) -> Iterator[Block[Rows]]:
        """Yield every block of every part in order, keeping none."""
        for part in range(len(self._starts) - 1):
            yield from self._open_part(part)

    def fetch(self, row: int) -> tuple[Rows, int]:
        """Return the block that holds a row, and where in the block it is.

        Raises
        ------
        DataError
            If the part ends before that row: the file has changed since it was opened.
        """
        if self._held.pid != os.getpid():  # files and locks do not survive a fork
            self._held = _Held()
        with self._held.lock:
            return self._cached(row) or self._read_up_to(row)

    def _cached(self, row: int) -> tuple[Rows, int] | None:
        held = self._held
        at = bisect_right(held.firsts, row) - 1
        if at < 0:
            return None
        first = held.firsts[at]
        if row >= first + held.blocks[first].count:
            return None
        held.blocks.move_to_end(first)
        return held.blocks[first].rows, row - first

    def _read_up_to(self, row: int) -> tuple[Rows, int]:
        held = self._held
        part = bisect_right(self._starts, row) - 1
        if held.part != part or held.next_row > row:
            held.part, held.next_row = part, self._starts[part]
            held.stream = self._open_part(part)
        while held.next_row <= row:
            try:
                block = next(held.stream)
            except BaseException as error:  # a stream that failed cannot go on: open it anew
                held.part = -1
                if isinstance(error, StopIteration):
                    raise DataError(
                        f"part {part} ends before row {row - self._starts[part]}; "
                        "has the file changed since it was opened?"
                    ) from None
                raise
            first, held.next_row = held.next_row, held.next_row + block.count
            self._keep(first, block)
        return block.rows, row - first

    def _keep(self, first: int, block: Block[Rows]) -> None:
        held = self._held
        if first not in held.blocks:
            insort(held.firsts, first)
            held.nbytes += block.nbytes
            held.blocks[first] = block
        while held.nbytes > self._cache_bytes and len(held.blocks) > 1:
            oldest, dropped = held.blocks.popitem(last=False)
            held.nbytes -= dropped.nbytes
            held.firsts.remove(oldest)
