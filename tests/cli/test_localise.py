"""``polysem localise`` on the shipped B-cos model."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from shell import polysem

MODEL = Path(__file__).parents[2] / "data" / "models" / "shapes_micro_bcos.safetensors"
COLOURS = "shapes:test?label=colour&n=40"


def test_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "localise"
    words = ("localise", "--model", MODEL, "--data", COLOURS, "--out", out, "--images", 3)
    code, printed, err = polysem(
        capsys, *words, "--grids", 1, "--method", "bcos,input_gradient", "--device", "cpu"
    )
    assert (code, err) == (0, "")
    assert "input_gradient" in printed
    names = {
        "localisation.csv", "localisation.parquet", "scores.parquet", "curves.parquet",
        "localisation.png", "gallery.png",
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == names
    table = pd.read_parquet(out / "localisation.parquet")
    assert set(table.attrs["columns"]) == set(table.columns)
    pd.testing.assert_frame_equal(table, pd.read_csv(out / "localisation.csv"))
    values = table.set_index(["method", "metric"])["value"]
    assert values["bcos", "mask_energy"] > values["uniform", "mask_energy"]
    for name in ("localisation.png", "gallery.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "shapes:test?n=40"], "give data with the labels that the model has learnt"),
        (["--data", COLOURS, "--grid", 3], "needs 9 classes"),
        (["--data", COLOURS, "--grid", 1], "at least 2 × 2"),
        (["--data", COLOURS, "--method", "grad-cam"], "no method is called"),
        (["--data", COLOURS, "--images", 0], "n_images must be at least 1"),
        (["--data", COLOURS, "--baseline", "black", "--method", "bcos"], "choose mean or blur"),
        (["--data", COLOURS, "--smooth", 4, "--method", "bcos"], "odd number"),
        (["--data", COLOURS, "--seed", -1], "seed"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = polysem(capsys, "localise", "--model", MODEL, "--out", tmp_path / "o", *words)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()
