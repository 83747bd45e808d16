"""Sanity checks on networks whose answer is known, and on methods that must fail or pass them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import VITS, small_vit
from studied import colour_model, gradient, true_evidence
from torch import Tensor

from polysem.data.shapes import Shapes
from polysem.errors import SpecError
from polysem.explain.sanity import MEANINGS, sanity_checks
from polysem.explain.similarity import SIMILARITIES
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform

DATA = Shapes("test", n=5, size=32)


def vit(name: str = "standard", **fields: Any) -> LoadedModel:
    values: dict[str, Any] = {
        "model": small_vit(name, dtype=torch.float32),
        "transform": Transform(size=(16, 24), crop_pct=1.0, inverse=name.startswith("bcos")),
        "classes": None, "name": name, "spec": name, "sha256": "0" * 64, "build": VITS[name],
    }  # fmt: skip
    return LoadedModel(**{**values, **fields})


def checks(loaded: LoadedModel, **options: Any) -> pd.DataFrame:
    options = {"n_images": 5, "batch_size": 3, "progress": False, **options}
    return sanity_checks(loaded, DATA, **options)


def brightness(model: Any, images: Tensor, target: Any) -> Tensor:
    return images[:, :3].sum(1)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    methods = {"gradient": gradient, "brightness": brightness}
    loaded = vit()
    return checks(loaded, methods=methods, permuted=loaded)


def test_the_table_says_what_it_holds(table: pd.DataFrame) -> None:
    assert set(table.columns) == set(MEANINGS) == set(table.attrs["columns"])
    layers = ["none", "head", "fc_norm", "blocks.2", "blocks.1", "blocks.0"]
    layers += ["patch_embed.proj.linear"]
    for order in ("cascading", "independent"):
        rows = table[table["order"] == order].drop_duplicates("depth")
        assert rows["layer"].tolist() == layers
        assert rows["depth"].tolist() == list(range(7))
    assert len(table) == 4 * len(SIMILARITIES) * (7 + 7 + 1)
    assert (table["n"] == 5).all()


def test_the_trained_model_is_like_itself(table: pd.DataFrame) -> None:
    none = table[(table["depth"] == 0) | (table["order"] == "data")]  # here the same weights
    np.testing.assert_allclose(none["value"], 1, atol=1e-6)


def test_what_is_blind_to_the_model_stays_at_one(table: pd.DataFrame) -> None:
    blind = table[table["method"].isin(["edges", "brightness"])]
    np.testing.assert_allclose(blind["value"], 1, atol=1e-6)


def test_noise_falls_to_zero_at_once(table: pd.DataFrame) -> None:
    drawn = table[(table["method"] == "noise") & (table["depth"] > 0) & (table["layer"] != "none")]
    ranks = drawn[drawn["similarity"].str.startswith("spearman")]
    assert ranks["value"].abs().max() < 0.15
    assert drawn["value"].abs().max() < 0.45  # HOG of 16 × 24 pixels has few numbers


def test_gradients_notice(table: pd.DataFrame) -> None:
    rows = table[(table["method"] == "gradient") & (table["similarity"] == "spearman")]
    whole = rows[(rows["order"] == "cascading") & (rows["layer"] == "patch_embed.proj.linear")]
    assert abs(whole["value"].iloc[0]) < 0.3
    first = rows[rows["layer"] == "head"]["value"].tolist()
    assert first[0] == pytest.approx(first[1])  # with one layer the orders are the same


@pytest.mark.parametrize("name", ["bcos", "registers_layerscale_qknorm"])
def test_all_methods_of_a_network(name: str) -> None:
    loaded = vit(name)
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    table = checks(loaded, methods="input_gradient", orders=("independent",), by="module",
                   n_images=2)  # fmt: skip
    layers = set(table["layer"])
    bare = {"bcos": "blocks.0.attn.position_bias"}.get(name, "pos_embed")
    assert {bare, "none"} <= layers
    moved = table[(table["layer"] == bare) & (table["method"] == "input_gradient")]
    assert (moved["value"] < 0.9999).all()  # positions count, and were drawn anew
    assert all(torch.equal(v, before[k]) for k, v in loaded.model.state_dict().items())


def test_maps_that_are_constant_have_no_similarity() -> None:
    def after(model: Any, images: Tensor, target: Any) -> Tensor:
        same = torch.equal(model.colours, colour_model().model.colours)
        return images.sum(1) if same else images.new_zeros(images.shape[0], *images.shape[2:])

    table = checks(colour_model(), methods={"after": after})
    drawn = table[(table["method"] == "after") & (table["depth"] == 1)]
    assert drawn["value"].isna().all()
    assert (drawn["n"] == 0).all()


def test_one_image_has_no_interval() -> None:
    table = checks(colour_model(), methods={"evidence": true_evidence}, n_images=1)
    assert table["low"].isna().all()
    assert table["value"].notna().all()


def test_what_cannot_be_done_is_said_in_one_sentence() -> None:
    with pytest.raises(SpecError, match="give LoadedModel the function `build`"):
        checks(vit(build=None))
    with pytest.raises(SpecError, match=r"no order 'casading'.*did you mean 'cascading'"):
        checks(vit(), orders=("casading",))
    with pytest.raises(SpecError, match="n_images must be at least 1"):
        checks(vit(), n_images=0)
    with pytest.raises(SpecError, match="same architecture and transform"):
        checks(vit(), permuted=vit("bcos"))
    seven = partial(VITS["standard"], num_classes=7)
    with pytest.raises(SpecError, match="has 7 classes, standard 5"):
        checks(vit(), permuted=replace(vit(), model=seven().eval()))
    with pytest.raises(SpecError, match="no tensor like"):
        checks(vit(build=VITS["class_token"]))
    with pytest.raises(SpecError, match="no method is called"):
        checks(vit(), methods="gradcam2")
