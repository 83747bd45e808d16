"""One signature for all methods, and which model can have which."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from small_models import images_for, small_cnn, small_vit
from torch import nn

from polysem.errors import SpecError
from polysem.explain.methods import METHODS, applicable_methods, choose_methods
from polysem.explain.target import Target

CAMS = {
    "gradcam", "hirescam", "gradcam_plusplus", "gradcam_elementwise", "xgradcam", "layercam",
    "eigencam", "eigengradcam",
}  # fmt: skip
ATTENTION = {"rollout", "gradient_rollout", "raw_attention"}
GRADIENTS = {"input_gradient", "integrated_gradients"}


def network(name: str) -> Any:
    return small_cnn(name) if "resnet" in name else small_vit(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bcos", {"bcos"} | CAMS | ATTENTION | GRADIENTS),
        ("class_token", CAMS | ATTENTION | GRADIENTS),
        ("resnet18", CAMS | GRADIENTS),
        ("bcos_resnet20_32", {"bcos"} | CAMS | GRADIENTS),
    ],
)
def test_which_model_can_have_which(name: str, expected: set[str]) -> None:
    found = applicable_methods(network(name))
    assert set(found) == expected
    assert all(method.__name__ == key for key, method in found.items())
    assert set(choose_methods("all", network(name))) == expected


def test_a_network_of_no_known_site_has_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert set(applicable_methods(model)) == GRADIENTS


@pytest.mark.parametrize("name", ["bcos", "class_token", "resnet18"])
def test_every_method_gives_a_map_of_each_image_for_itself(name: str) -> None:
    model = network(name)
    x = images_for(model)
    site = "layer3.1.hook_post" if name == "resnet18" else "blocks.1.mlp.hook_post"
    for key, method in applicable_methods(model).items():
        assert list(inspect.signature(method).parameters)[:3] == ["model", "images", "target"]
        for target in (Target(2), Target(3, site)):
            maps = method(model, x, target)
            assert maps.shape == (2, *x.shape[2:]) and maps.dtype == x.dtype, key
            assert not maps.requires_grad
            if "eigen" not in key:  # whose sign and scale are those of a decomposition
                torch.testing.assert_close(method(model, x[1:], target)[0], maps[1], msg=key)
        own = method(model, x, torch.tensor([2, 2]))
        if "eigen" not in key:
            torch.testing.assert_close(own, method(model, x, Target(2)), msg=key)


def test_names_are_checked() -> None:
    model = network("resnet18")
    assert list(choose_methods("hirescam, gradcam", model)) == ["hirescam", "gradcam"]
    for names, message in (
        ("gradcm", "did you mean 'gradcam'"),
        ("zzz", "there are bcos, gradcam"),
        ("rollout", "need attention patterns, and ResNet has none"),
        ("gradcam,bcos", "ResNet has no B-cos layers"),
        ("", "no method is called ''"),
    ):
        with pytest.raises(SpecError, match=message):
            choose_methods(names, model)
    assert set(METHODS) == {"bcos"} | CAMS | ATTENTION | GRADIENTS


def test_all_are_those_that_the_target_can_have() -> None:
    model = network("bcos")
    early = Target(0, "blocks.0.hook_resid_pre")
    assert set(choose_methods("all", model, early)) == {"bcos"} | GRADIENTS
    with pytest.raises(SpecError, match="no attention comes before"):
        choose_methods("rollout", model, early)
    assert set(choose_methods("all", model, torch.tensor([0]))) == set(METHODS)
