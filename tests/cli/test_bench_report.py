"""``polysem bench report`` from end to end, on few units."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest


def test_size_and_speed_of_a_site_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "bench"
    done = subprocess.run(  # a process of its own: playwright runs once in each
        [sys.executable, "-m", "polysem", "bench", "report", "--out", out, "--units", "60",
         "--images", "300", "--data", "shapes:test?n=8&size=96"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert str(out / "site" / "index.html") in said
    table = pd.read_csv(out / "table.csv").set_index("what")["value"]
    files = [file for file in (out / "site").rglob("*") if file.is_file()]
    assert table["files"] == len(files)
    assert table["whole site"] == pytest.approx(sum(f.stat().st_size for f in files) / 1e6)
    assert table["images"] > 0.05  # up to 300 pictures, and not grey fields
    if "no page was opened" not in said:
        assert 0 < table["index page with all that it loads"] < 2
        assert table["atlas page with all that it loads"] < table["whole site"]
        assert table["index page, first view whole"] > 0
