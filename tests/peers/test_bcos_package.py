"""The official B-cos layers and vision transformers, with their weights here: the same functions.

The `bcos` package builds networks with random weights; their state dicts are loaded into ours,
and logits, W(x) and contribution maps compared. Norm weights are drawn, so that they matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from polysem import _torchvision
from polysem.models import norms as our_norms
from polysem.models.bcos import BcosConv2d, BcosLinear, add_inverse, explanation_mode
from polysem.models.official import OFFICIAL_VITS, official_vit
from polysem.models.transform import Transform

_torchvision.repair()
bcos_modules = pytest.importorskip(
    "bcos.modules", reason="the official package is a development dependency"
)

from bcos.models import pretrained  # noqa: E402
from bcos.modules import norms  # noqa: E402


def function(name: str) -> Callable[..., nn.Module]:
    built: Callable[..., nn.Module] = getattr(pretrained, name)
    return built


def lived_in(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def twin_of(name: str, peer: nn.Module, **options: Any) -> nn.Module:
    arch, model_args, state_dict = official_vit(name, peer.state_dict())
    model: nn.Module = timm.create_model(arch, **model_args, **options)
    model.load_state_dict(state_dict)
    return model.eval()


def image(size: int, *, inverse: bool = True) -> Tensor:
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(4))
    return add_inverse(x) if inverse else x


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("simple_vit_ti_patch16_224", 224, {}),
        ("vitc_ti_patch1_14", 224, {}),
        ("simple_vit_s_patch16_224", 64, {"num_classes": 10}),
        ("vitc_s_patch1_14", 96, {"num_classes": 10}),
        ("vitc_ti_patch1_14", 64, {"num_classes": 10, "bcos_args": {"b": 2, "max_out": 2}}),
        ("simple_vit_ti_patch16_224", 64, {"bcos_args": {"b": 1.5, "max_out": 1}}),
    ],
)
def test_logits_and_explanations_are_the_same(
    name: str, size: int, options: dict[str, Any]
) -> None:
    b = options.get("bcos_args", {}).get("b", 2)  # which weights do not tell
    peer = lived_in(function(name)(**options))
    ours, x = twin_of(name, peer, b=b), image(size)
    if "num_classes" in options:  # the package keeps the bias of a thousand classes
        ours.head.bias.value = peer[1].logit_bias
    with torch.no_grad():
        theirs, logits = peer(x), ours(x)
    assert theirs.std() > 1e-3
    assert (logits - theirs).abs().max() <= 1e-5

    explained = peer.explain(x.clone().requires_grad_())
    x.requires_grad_()
    with explanation_mode(ours):
        logit = ours(x)[0, explained["prediction"]]
    (w,) = torch.autograd.grad(logit, x)
    expected = explained["dynamic_linear_weights"]
    contributions = (w * x).sum(1)
    for actual, wanted in ((w, expected), (contributions, explained["contribution_map"])):
        difference = (actual - wanted).abs().max()
        assert difference <= 1e-5 and difference <= 1e-4 * wanted.abs().max()
    assert logit == logits[0, explained["prediction"]]


@pytest.mark.parametrize("name", ["simple_vit_ti_patch16_224", "vitc_ti_patch1_14"])
def test_standard_networks_are_the_same(name: str) -> None:
    peer = lived_in(function(f"standard_{name}")(num_classes=10))
    ours, x = twin_of(f"standard_{name}", peer), image(64, inverse=False)
    with torch.no_grad():
        assert (ours(x) - peer(x)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["simple_vit_ti_patch16_224", "vitc_ti_patch1_14"])
def test_in_float64_nothing_is_left(name: str) -> None:
    peer = lived_in(function(name)(num_classes=10)).double()
    ours, x = twin_of(name, peer).double(), image(64).double()
    ours.head.bias.value = peer[1].logit_bias
    with torch.no_grad():
        assert (ours(x) - peer(x)).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", ["", "standard_"])
@pytest.mark.parametrize("name", OFFICIAL_VITS)
def test_every_official_network_fits_by_name_and_shape(kind: str, name: str) -> None:
    with torch.device("meta"):  # shapes without numbers
        peer = function(f"{kind}{name}")()
        arch, model_args, state_dict = official_vit(f"{kind}{name}", peer.state_dict())
        ours = timm.create_model(arch, **model_args)
    assert {key: value.shape for key, value in state_dict.items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }


@pytest.mark.parametrize("name", ["simple_vit_ti_patch16_224", "standard_vitc_ti_patch1_14"])
def test_images_are_shown_as_there(name: str) -> None:
    peer = function(name)()
    arch = official_vit(name, peer.state_dict())[0]
    config = timm.get_pretrained_cfg(arch)
    inverse = config.input_size[0] == 6
    transform = Transform(
        config.input_size[1:],
        config.crop_pct,
        config.interpolation,
        config.mean,
        config.std,
        inverse,
    )
    noise = np.random.default_rng(0).integers(0, 256, (301, 280, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    shown = transform.normalize(transform(picture)[None])[0]
    torch.testing.assert_close(shown, peer.transform(picture), rtol=0, atol=1e-6)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (
        lambda: norms.NoBias(norms.DetachableLayerNorm)(6),
        lambda: our_norms.LayerNorm(6),
        (2, 3, 6),
    ),
    "position norm": (
        lambda: norms.NoBias(norms.DetachablePositionNorm2d)(6),
        lambda: our_norms.PositionNorm2d(6),
        (2, 6, 3, 5),
    ),
    "group norm": (
        lambda: norms.NoBias(norms.DetachableGNLayerNorm2d)(6),
        lambda: our_norms.GroupNorm1(6),
        (2, 6, 3, 5),
    ),
    "batch norm": (
        lambda: norms.NoBias(norms.BatchNorm2d)(6),
        lambda: our_norms.BatchNorm2d(6),
        (2, 6, 3, 5),
    ),
    "uncentred batch norm": (
        lambda: norms.NoBias(norms.BatchNormUncentered2d)(6),
        lambda: our_norms.BatchNormUncentered2d(6),
        (2, 6, 3, 5),
    ),
}
for b, max_out in ((1, 1), (1.5, 2), (2, 1), (2, 3)):
    options = {"b": b, "max_out": max_out}
    LAYERS[f"linear {options}"] = (
        lambda options=options: bcos_modules.BcosLinear(6, 4, **options),
        lambda options=options: BcosLinear(6, 4, **options),
        (2, 3, 6),
    )
    for groups in (1, 2):
        LAYERS[f"convolution {options} {groups=}"] = (
            lambda options=options, groups=groups: bcos_modules.BcosConv2d(
                6, 4, 3, stride=2, padding=1, groups=groups, **options
            ),
            lambda options=options, groups=groups: BcosConv2d(
                6, 4, 3, stride=2, padding=1, groups=groups, **options
            ),
            (2, 6, 7, 5),
        )


@pytest.mark.parametrize("explained", [False, True])
@pytest.mark.parametrize("case", LAYERS)
def test_layers_are_the_same(case: str, explained: bool) -> None:
    theirs, ours, shape = LAYERS[case]
    peer, layer = lived_in(theirs()).double(), ours().double().eval()
    layer.load_state_dict(
        {key.removeprefix("linear."): value for key, value in peer.state_dict().items()}
    )
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    if not explained:  # batch statistics and the statistics kept of them
        for side in (peer, layer):
            side.train()(x.detach() + 1)
            side.eval()
    if explained and hasattr(peer, "set_explanation_mode"):
        peer.set_explanation_mode(True)
    expected = peer(x)
    probe = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad((expected * probe).sum(), x)
    layer.explaining = explained
    y = layer(x)
    (row,) = torch.autograd.grad((y * probe).sum(), x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(row, wanted, rtol=1e-9, atol=1e-9)
