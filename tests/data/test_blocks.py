"""Rows come out right in any order, while no more than a budget is held."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.data.blocks import Block, BlockReader
from polysem.errors import DataError


@dataclass
class Parts:
    """Parts whose rows are their global numbers, each worth one byte."""

    counts: list[int]
    step: int
    opened: list[int] = field(default_factory=list)
    lost: int = 0

    def __call__(self, part: int) -> Generator[Block[list[int]], None, None]:
        self.opened.append(part)
        start = sum(self.counts[:part])
        end = start + self.counts[part] - self.lost
        for first in range(start, end, self.step):
            rows = list(range(first, min(first + self.step, end)))
            yield Block(rows, len(rows), len(rows))


def value(reader: BlockReader[list[int]], row: int) -> int:
    rows, at = reader.fetch(row)
    return rows[at]


@settings(deadline=None)
@given(st.data())
def test_any_order_within_any_budget(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any))
    reader = BlockReader(
        counts,
        Parts(counts, data.draw(st.integers(1, 4))),
        cache_bytes=data.draw(st.integers(0, 30)),
    )
    assert len(reader) == sum(counts)
    for row in data.draw(st.lists(st.integers(0, sum(counts) - 1), max_size=40)):
        assert value(reader, row) == row


def test_in_order_every_part_is_opened_once_and_one_block_is_held() -> None:
    parts = Parts([7, 5, 8], 3)
    reader = BlockReader(parts.counts, parts)
    for row in (0, 0, *range(20)):
        assert value(reader, row) == row
        assert reader._held.nbytes <= 3
    assert parts.opened == [0, 1, 2]


def test_out_of_order_no_more_than_the_budget_is_held() -> None:
    parts = Parts([7, 5, 8], 3)
    reader = BlockReader(parts.counts, parts, cache_bytes=9)
    held = []
    for row in [19, *range(20)]:
        assert value(reader, row) == row
        held.append(reader._held.nbytes)
    assert 6 < max(held) <= 9


def test_what_fits_is_read_once_however_it_is_shuffled() -> None:
    parts = Parts([6, 6], 6)
    reader = BlockReader(parts.counts, parts)
    for row in (11, 0, 7, 5, 3, 10, 1):
        assert value(reader, row) == row
    assert sorted(parts.opened) == [0, 1]


def test_stream_gives_all_rows_and_keeps_none() -> None:
    reader = BlockReader([4, 0, 3], Parts([4, 0, 3], 2))
    assert [row for block in reader.stream() for row in block.rows] == list(range(7))
    assert reader._held.nbytes == 0


def test_a_copy_brings_no_blocks_along() -> None:
    reader = BlockReader([500], Parts([500], 500))
    small = len(pickle.dumps(reader))
    value(reader, 0)
    assert len(pickle.dumps(reader)) < small + 50
    assert value(pickle.loads(pickle.dumps(reader)), 499) == 499


def test_a_forked_copy_opens_its_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts([9], 3)
    reader = BlockReader(parts.counts, parts)
    value(reader, 0)
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    assert value(reader, 4) == 4
    assert parts.opened == [0, 0]


def test_a_part_that_failed_is_opened_anew() -> None:
    class Failing(Parts):
        def __call__(self, part: int) -> Generator[Block[list[int]], None, None]:
            yield from super().__call__(part)
            raise DataError("damaged")

    reader = BlockReader([4], Failing([4], 2, lost=1))
    for _ in range(2):
        with pytest.raises(DataError, match="damaged"):
            reader.fetch(3)
        assert value(reader, 0) == 0


def test_nothing_is_left_open() -> None:
    class Watched(Parts):
        def __call__(self, part: int) -> Generator[Block[list[int]], None, None]:
            try:
                yield from super().__call__(part)
            finally:
                closed.append(part)

    closed: list[int] = []
    reader = BlockReader([4, 4, 4], Watched([4, 4, 4], 2))
    reader.fetch(0)
    reader.fetch(4)
    assert closed == [0]  # another part was begun
    reader.fetch(7)
    assert closed == [0, 1]  # read to its end
    reader.fetch(8)
    del reader
    gc.collect()
    assert closed == [0, 1, 2]  # begun, but nobody needs it any more


def test_nothing_is_printed_when_python_ends_in_the_middle(tmp_path: Path) -> None:
    script = """
import sys, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from polysem.data import parquet
parquet.BLOCK_BYTES = 100
pq.write_table(pa.table({"image": [bytes(50)] * 90}), sys.argv[1])
data = parquet.load_parquet(Path(sys.argv[1]), name="spec")
data._blocks.fetch(3)
assert data._blocks._held.stream is not None
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.parquet")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (ended.stdout, ended.stderr) == ("", "")


def test_threads_share_a_reader() -> None:
    reader = BlockReader([50, 50], Parts([50, 50], 7), cache_bytes=20)
    rows = [row * 37 % 100 for row in range(400)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: value(reader, row), rows)) == rows


def test_a_part_that_became_shorter_is_told_and_can_be_tried_again() -> None:
    parts = Parts([6], 2, lost=2)
    reader = BlockReader([6], parts)
    for _ in range(2):
        with pytest.raises(DataError, match="ends before row 5; has the file changed"):
            reader.fetch(5)
    parts.lost = 0
    assert value(reader, 5) == 5
