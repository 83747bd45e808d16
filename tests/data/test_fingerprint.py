"""The hash changes with whatever a network would notice, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.data.fingerprint import data_sha256, file_chunks
from polysem.errors import DataError, MissingError


class Named(ImageData):
    fingerprint = ""

    def read(self, index: int) -> Image.Image:
        raise NotImplementedError


def test_every_part_counts() -> None:
    usual: dict[str, Any] = {"labels": [0, 1], "classes": ["x", "y"]}
    hashes = [
        data_sha256(Named("s", ["a", "b"], **usual), [b"12"]),
        data_sha256(Named("s", ["b", "a"], **usual), [b"12"]),
        data_sha256(Named("s", ["a", "b"], labels=[1, 0], classes=["x", "y"]), [b"12"]),
        data_sha256(Named("s", ["a", "b"], labels=[0, 1], classes=["x", "z"]), [b"12"]),
        data_sha256(Named("s", ["a", "b"], **usual), [b"13"]),
        data_sha256(Named("s", ["a", "b"]), [b"12"]),
        data_sha256(Named("s", ["ab"], classes=["x", "y"]), [b"12"]),
    ]
    assert len(set(hashes)) == len(hashes)
    again = data_sha256(Named("another name", ["a", "b"], **usual), [b"1", b"2"])
    assert again == hashes[0]


def test_files_are_told_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"ab")
    two.write_bytes(b"c")
    before = b"".join(file_chunks([one, two]))
    one.write_bytes(b"a")
    two.write_bytes(b"bc")
    assert b"".join(file_chunks([one, two])) != before


def test_files_that_are_gone(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="gone"):
        list(file_chunks([tmp_path / "x"]))
    with pytest.raises(DataError, match="cannot be read"):
        list(file_chunks([tmp_path]))
