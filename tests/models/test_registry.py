"""What timm's registry says about a model, in polysem's terms."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from polysem.errors import SpecError
from polysem.models.registry import (
    classes_in,
    create,
    evaluation_transform,
    home,
    require_known,
)
from polysem.models.transform import Transform

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", Transform((224, 224), 0.9, "bicubic", HALF, HALF)),
        ("bcos_resnet18", Transform((224, 224), 0.875, "bilinear", inverse=True)),
        ("bcos_resnet20_32", Transform((32, 32), 1.0, "bilinear", inverse=True)),
    ],
)
def test_the_transform_is_that_of_timm(name: str, expected: Transform) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert evaluation_transform(model) == expected
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    config = timm.data.resolve_model_data_config(model)
    config["input_size"] = (3, *config["input_size"][1:])
    theirs = timm.data.create_transform(**config, is_training=False)(image)
    ours = expected.normalize(expected(image)[None])[0]
    assert torch.allclose(ours[:3], theirs, rtol=0, atol=1e-6)


def test_models_of_other_channels_are_refused() -> None:
    with pytest.raises(SpecError, match="the model takes 4 channels; polysem gives 3, or"):
        evaluation_transform(create("resnet20_32", {"in_chans": 4}))


def test_names_and_tags() -> None:
    require_known("resnet18")
    require_known("resnet18.a1_in1k")
    with pytest.raises(SpecError, match="no model called 'resnet19'; did you mean 'resnet18'"):
        require_known("resnet19")
    with pytest.raises(SpecError, match=r"resnet18 has no .* tagged 'a1_in2k'; did you mean"):
        require_known("resnet18.a1_in2k")
    with pytest.raises(SpecError, match=r"resnet20_32 has no .* tagged 'x'; it has none"):
        require_known("resnet20_32.x")


def test_arguments_that_a_model_does_not_take() -> None:
    assert create("resnet20_32", {"num_classes": 3}).num_classes == 3
    with pytest.raises(SpecError, match=r"resnet20_32 cannot be built with \{'wings': 2\}: "):
        create("resnet20_32", {"wings": 2})
    with pytest.raises(SpecError, match="no norm is called 'soft'"):
        create("bcos_resnet20_32", {"norm": "soft"})


@pytest.mark.parametrize(
    "name",
    ["resnet20_32", "bcos_resnet20_32", "vit_micro_patch8_gap_64", "bcos_vit_micro_patch8_64"],
)
def test_the_classifier_tells_the_number_of_classes(name: str) -> None:
    assert classes_in(create(name, {"num_classes": 6}).state_dict(), name) == 6
    assert classes_in({"other": torch.ones(2)}, name) is None


def test_a_name_tells_whose_model_it_is() -> None:
    assert home("bcos_vitc_micro_patch4_32") == "polysem.models.vit"
    assert home("resnet20_32") == "polysem.models.cnn"
    assert home("vit_tiny_patch16_224.augreg_in21k") == "timm.models.vision_transformer"
