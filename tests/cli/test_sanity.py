"""``polysem sanity`` on the shipped B-cos model."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from shell import polysem

MODELS = Path(__file__).parents[2] / "data" / "models"
MODEL = MODELS / "shapes_micro_bcos.safetensors"


def test_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sanity"
    code, printed, err = polysem(
        capsys, "sanity", "--model", MODEL, "--data", "shapes:test", "--out", out, "--images", 2,
        "--method", "bcos", "--permuted", MODEL, "--device", "cpu",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "permuted labels" in printed
    assert {path.name for path in out.iterdir()} == {"sanity.csv", "sanity.parquet", "sanity.png"}
    table = pd.read_parquet(out / "sanity.parquet")
    assert set(table.attrs["columns"]) == set(table.columns)
    whole = table[(table["layer"] == "patch_embed.proj.linear") & (table["method"] == "bcos")]
    assert whole.loc[whole["similarity"] == "spearman", "value"].abs().max() < 0.3
    with Image.open(out / "sanity.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--by", "neuron"], "block or module"),
        (["--method", "gradcm"], "did you mean 'gradcam'"),
        (["--permuted", MODELS / "shapes_micro_vit.safetensors"], "same architecture"),
        (["--permuted", "none.pt"], "none.pt"),
        (["--images", -1], "n_images must be at least 1"),
        (["--seed", -1], "seed"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = polysem(
        capsys, "sanity", "--model", MODEL, "--data", "shapes:test", "--out", tmp_path / "o", *words
    )
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()
