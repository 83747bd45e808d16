"""`explain` on small models: what is in its answer, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from loaded import CLASSES, loaded, shapes
from PIL import Image

import polysem
from polysem.errors import MissingError, NonFiniteError, RunError, SpecError
from polysem.explain.colour import colour
from polysem.explain.explain import COLUMNS, explain, image_files
from polysem.explain.linear import bcos
from polysem.explain.target import Target
from polysem.explain.write import overlay, write_explanations


def test_maps_are_those_of_the_methods_for_the_predicted_class() -> None:
    model = loaded("bcos")
    data = shapes(5)
    found = explain(model, data, methods="bcos,rollout", limit=None, batch_size=2, progress=False)
    pixels = torch.stack([model.transform(data.read(i)) for i in range(5)])
    x = model.transform.normalize(pixels)
    predicted = model.model(x).argmax(1)
    assert found.predictions == found.targets == [CLASSES[i] for i in predicted.tolist()]
    np.testing.assert_allclose(found.maps["bcos"], bcos(model.model, x, predicted), atol=1e-6)
    colours = colour(model.model, x, predicted).permute(0, 2, 3, 1)
    assert found.colours is not None
    np.testing.assert_allclose(found.colours, colours, atol=1e-5)
    assert list(found.maps) == ["bcos", "rollout"]
    assert found.labels == [data.classes[i] for i in data.labels]  # type: ignore[index, union-attr]
    table = found.table()
    assert list(table.columns) == list(COLUMNS) == list(table.attrs["columns"])
    assert len(table) == 10
    exact = table[table["method"] == "bcos"]
    assert exact["error"].abs().max() < 1e-5
    np.testing.assert_allclose(exact["sum"] + exact["added"], exact["value"], atol=1e-5)
    assert table.loc[table["method"] == "rollout", ["added", "error"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("c", "c"),
        (Target(2), "c"),
        ("blocks.1.mlp.hook_post:7", "blocks.1.mlp.hook_post:7"),
    ],
)
def test_a_target_for_all_images(target: str | Target, said: str) -> None:
    found = explain(
        loaded("class_token"), shapes(3), target=target, methods="hirescam", progress=False
    )
    assert found.targets == [said] * 3 and found.colours is None and found.added is None


def test_the_package_is_the_function() -> None:
    found = polysem.explain(loaded("resnet18"), shapes(2), methods="gradcam", progress=False)
    assert found.maps["gradcam"].shape == (2, 32, 48)


def test_bad_requests_get_a_sentence() -> None:
    model = loaded("resnet18")
    for options, message in (
        ({"methods": "rollout"}, "need attention patterns, and ResNet has none"),
        ({"target": "f"}, "there is no class 'f'"),
        ({"target": Target(7)}, "there is no class 7"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(SpecError, match=message):
            explain(model, shapes(2), progress=False, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        model.model.fc.weight[0] = torch.nan  # type: ignore[union-attr, operator, index]
    with pytest.raises(NonFiniteError):
        explain(model, shapes(2), target="a", methods="hirescam", progress=False)


def test_single_files(tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    Image.new("RGB", (40, 20), "red").save(file)
    found = explain(loaded("bcos"), image_files([file]), methods="bcos", progress=False)
    assert found.keys == [str(file)] and found.labels is None
    with pytest.raises(MissingError, match="there is no image file"):
        image_files([tmp_path / "two.png"])


def test_the_folder_holds_pictures_arrays_and_an_index(tmp_path: Path) -> None:
    found = explain(loaded("bcos"), shapes(2), methods="bcos,gradcam", progress=False)
    out = write_explanations(found, tmp_path / "why", facts={"model": "m"})
    names = {"image", "colour", "bcos", "gradcam"}
    pictures = {f"{i:04d}-{name}.png" for i in range(2) for name in names}
    assert {p.name for p in (out / "images").iterdir()} == pictures
    with Image.open(out / "images" / "0001-colour.png") as picture:
        assert picture.mode == "RGB" and picture.size == (24 * 14, 16 * 14)
    with np.load(out / "maps.npz") as arrays:
        np.testing.assert_array_equal(arrays["bcos"], found.maps["bcos"])
        assert {"gradcam", "colour", "values", "image", "pixels"} <= set(arrays)
    index = pd.read_csv(out / "index.csv")
    assert list(index.columns) == list(COLUMNS) and len(index) == 4
    said = json.loads((out / "explain.json").read_text())
    assert said["methods"] == ["bcos", "gradcam"] and said["model"] == "m"

    with pytest.raises(RunError, match="already holds explanations"):
        write_explanations(found, out)
    again = write_explanations(found, out, ground="transparent", overwrite=True)
    with Image.open(again / "images" / "0000-colour.png") as picture:
        assert picture.mode == "RGBA"
    assert {p.name for p in tmp_path.iterdir()} == {"why"}


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    found = explain(loaded("bcos"), shapes(1), methods="bcos", progress=False)
    out = write_explanations(found, tmp_path / "why")
    (out / "notes.txt").write_text("mine")
    for place in (out, tmp_path):
        with pytest.raises(RunError, match="something other than explanations"):
            write_explanations(found, place, overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        write_explanations(found, out / "notes.txt")

    def fail(file: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_explanations(found, tmp_path / "new", more={"overview.png": fail})
    assert {p.name for p in tmp_path.iterdir()} == {"why"}


def test_an_overlay_is_red_for_and_blue_against() -> None:
    pixels = np.full((1, 3, 3), 128, np.uint8)
    red, grey, blue = overlay(pixels, np.array([[1.0, 0.0, -1.0]]))[0].astype(int)
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50
    assert grey.max() == grey.min()
    silent = overlay(pixels, np.zeros((1, 3)))
    assert (silent == grey).all()
