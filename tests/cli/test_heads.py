"""``polysem heads`` and ``polysem compare-heads`` as a user gets them."""

from pathlib import Path

import pytest
import timm
import torch
from shell import polysem

from polysem.models.checkpoint import save_checkpoint
from polysem.store.run import Run

DATA = "shapes:test?n=5&size=16"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "small.pt"


def test_placeholder() -> None:
    assert timm and torch and polysem and save_checkpoint and Run and DATA
