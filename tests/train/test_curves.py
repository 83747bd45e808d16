from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polysem.errors import RunError
from polysem.train.curves import draw_curves

RECORDS = [
    {"epoch": e, "lr": 0.1 / e, "train_loss": 2 / e, "test_loss": 3 / e, "train_accuracy": 0.1 * e,
     "test_accuracy": 0.09 * e, "average_test_accuracy": 0.08 * e}
    for e in (1.0, 2.0, 3.0)
]  # fmt: skip


def _ink(path: Path) -> int:
    with Image.open(path) as picture:
        return int((np.asarray(picture.convert("L")) < 255).sum())


def test_a_picture_of_the_log(tmp_path: Path) -> None:
    draw_curves(RECORDS, tmp_path / "curves.png", title="a model")
    draw_curves(RECORDS[:1], tmp_path / "one.png", title="a model")
    without = [{k: v for k, v in r.items() if k != "average_test_accuracy"} for r in RECORDS]
    draw_curves(without, tmp_path / "without.png", title="a model")
    assert _ink(tmp_path / "curves.png") > _ink(tmp_path / "without.png") > 1000
    assert _ink(tmp_path / "one.png") > 1000
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        draw_curves(RECORDS, tmp_path / "no" / "curves.png", title="a model")
