"""Random access to rows that a file only yields forwards; between table files and ``ImageData``.

Row groups of parquet files and members of archives can be read from their start only. `BlockReader`
reads them block by block. While rows are asked for in order, as by a probe, it holds one block, so
that memory does not grow with the data; from the first step back on, as in shuffled training, it
keeps the blocks last used up to a fixed number of bytes.
"""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, TypeVar

from polysem.errors import DataError

__all__ = ["BLOCK_BYTES", "CACHE_BYTES", "Block", "BlockReader"]

#: What a reader should aim at for one block.
BLOCK_BYTES = 8 * 2**20
#: What the blocks of one reader may hold in one process, once it is read out of order.
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
    last_row: int = -1
    in_order: bool = True
    part: int = -1
    stream: Generator[Block[Rows], None, None] | None = None
    next_row: int = 0

    def close(self) -> None:
        """Let go of the part being read, and of its file."""
        if self.stream is not None:
            self.stream.close()
        self.stream = None


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
        How much the blocks kept may hold once rows are asked for out of order; the block last
        read is kept in any case.
    """

    def __init__(
        self,
        counts: Sequence[int],
        open_part: Callable[[int], Generator[Block[Rows], None, None]],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._starts = [0, *accumulate(counts)]
        self._open_part = open_part
        self._cache_bytes = cache_bytes
        self._held = self._hold_nothing()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_held"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._held = self._hold_nothing()

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
            self._held.blocks.clear()
            self._held = self._hold_nothing()
        with self._held.lock:
            self._held.in_order &= row >= self._held.last_row
            self._held.last_row = row
            return self._cached(row) or self._read_up_to(row)

    def _hold_nothing(self) -> _Held[Rows]:
        held: _Held[Rows] = _Held()
        # A file that is still open when Python ends would be closed too late to be closed quietly.
        weakref.finalize(self, held.close)
        return held

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
        if held.stream is None or held.part != part or held.next_row > row:
            held.close()
            held.part, held.next_row = part, self._starts[part]
            held.stream = self._open_part(part)
        stream, held.stream = held.stream, None  # not kept if it fails below: it cannot go on
        for block in stream:
            first, held.next_row = held.next_row, held.next_row + block.count
            self._keep(first, block)
            if held.next_row > row:
                held.stream = stream
                if held.next_row == self._starts[part + 1]:
                    held.close()
                return block.rows, row - first
        raise DataError(
            f"part {part} ends before row {row - self._starts[part]}; "
            "has the file changed since it was opened?"
        )

    def _keep(self, first: int, block: Block[Rows]) -> None:
        held = self._held
        if first not in held.blocks:
            insort(held.firsts, first)
            held.nbytes += block.nbytes
            held.blocks[first] = block
        budget = 0 if held.in_order else self._cache_bytes
        while held.nbytes > budget and len(held.blocks) > 1:
            oldest, dropped = held.blocks.popitem(last=False)
            held.nbytes -= dropped.nbytes
            held.firsts.remove(oldest)
