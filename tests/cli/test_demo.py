"""The demo from end to end, on fewer images."""

from pathlib import Path

import pandas as pd
import pytest

from polysem.cli.demo import demo


def test_the_demo_writes_table_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo(out=tmp_path / "demo", images=64)
    table = pd.read_csv(tmp_path / "demo" / "table.csv")
    assert table["block"].tolist() == list(range(8))
    assert (table["bcos dead"] == 0).all()
    assert len(list((tmp_path / "demo").glob("*.png"))) == 6
    said = capsys.readouterr().out
    page = tmp_path / "demo" / "report" / "index.html"
    assert page.is_file()
    assert page.as_uri() in said
    for name in ("bcos", "vit"):
        share = float(said.split(f"{name}: ")[1].split("%")[0])
        assert share >= 95  # what the shipped models were trained to
