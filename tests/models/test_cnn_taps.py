"""Sites of CNNs, against plain torch hooks and a ResNet run block by block in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import timm
import torch
from small_models import CNNS, images_for, noise_like, small_cnn
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.hooked import HookedVisionModel


@cache
def wrapped(name: str) -> HookedVisionModel:
    return HookedVisionModel(small_cnn(name))


def resnet_by_block(
    model: Any, images: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a ResNet in the open, editing the sites named; return logits and sites."""
    sites: dict[str, Tensor] = {}

    def site(name: str, value: Tensor) -> Tensor:
        sites[name] = edits.get(name, lambda same: same)(value)
        return sites[name]

    x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(model, stage)):
            skip = x if block.downsample is None else block.downsample(x)
            x = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
            x = site(f"{stage}.{index}.hook_post", block.act2(x + skip))
    if isinstance(model.fc, nn.Linear):
        pooled = site("hook_pooled", x.mean((2, 3)))
        return pooled @ model.fc.weight.T + model.fc.bias, sites
    return model.fc(x).mean((2, 3)) + model.logit_bias.value, sites


@pytest.mark.parametrize("name", CNNS)
def test_sites_and_their_gradients_are_those_of_the_network_run_by_block(name: str) -> None:
    hooked = wrapped(name)
    images = images_for(hooked.model)
    gradients: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: Any) -> None:
        gradients[hook.name] = gradient

    with hooked.hooks(bwd_hooks=[(lambda site: True, keep)]):
        logits, values = hooked.run_with_cache(images)
        logits[:, 3].sum().backward()
    hooked.zero_grad()
    expected, sites = resnet_by_block(hooked.model, images, {})
    expected_gradients = torch.autograd.grad(expected[:, 3].sum(), list(sites.values()))
    assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
    assert list(values.keys()) == list(sites) == list(hooked.hook_dict)
    for (site, value), gradient in zip(sites.items(), expected_gradients, strict=True):
        assert torch.allclose(values[site], value, rtol=0, atol=1e-12), site
        assert torch.allclose(gradients[site], gradient, rtol=0, atol=1e-12), site


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("resnet18", "layer1.1.hook_post"),
        ("resnet18", "layer4.1.hook_post"),
        ("resnet18", "hook_pooled"),
        ("bcos_resnet20_32", "layer2.0.hook_post"),
    ],
)
def test_an_edit_changes_the_output_as_a_direct_edit_does(name: str, site: str) -> None:
    hooked = wrapped(name)
    images = images_for(hooked.model)

    def shaken(value: Tensor) -> Tensor:
        return 0.7 * value + 0.3 * noise_like(value)

    def in_place(value: Tensor, hook: Any) -> None:
        value.copy_(shaken(value))

    with torch.no_grad():
        expected, _ = resnet_by_block(hooked.model, images, {site: shaken})
        for hook in (lambda value, hook: shaken(value), in_place):
            logits = hooked.run_with_hooks(images, fwd_hooks=[(site, hook)])
            assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
        assert not torch.allclose(logits, hooked(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("test_resnet", ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]),
        ("test_convnext", ["stages.0.blocks.0", "stages.3.blocks.0"]),
        ("test_efficientnet", ["blocks.0.0", "blocks.4.0"]),
        ("test_nfnet", ["stages.0.0", "stages.3.0"]),
        ("regnetx_002", ["s1.b1", "s2.b1", "s3.b4", "s4.b7"]),
    ],
)
def test_a_site_is_what_its_block_returns(name: str, sites: list[str]) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    hooked, images = HookedVisionModel(model), torch.randn(2, 3, 64, 96)
    seen: dict[str, Tensor] = {}
    for path in sites:
        model.get_submodule(path).register_forward_hook(
            lambda _m, _i, output, path=path: seen.__setitem__(path, output.clone())
        )
    with torch.no_grad():
        bare = model(images)
        logits, values = hooked.run_with_cache(images)
    assert torch.equal(logits, bare)
    for path in sites:
        maps = values[f"{path}.hook_post"]
        assert torch.equal(maps, seen[path])
        assert maps.ndim == 4 and maps.shape[2] * 3 == maps.shape[3] * 2
    with torch.no_grad():
        assert torch.equal(model.get_classifier()(values["hook_pooled"]), logits)
    for site, value in values.items():
        assert hooked.taps[site].signed or value.min() > -0.3, site


def test_channels_after_relu_are_not_signed_and_channels_of_other_blocks_are() -> None:
    assert not wrapped("resnet18").taps["layer1.0.hook_post"].signed
    assert wrapped("bcos_resnet20_32").taps["layer1.0.hook_post"].signed
    # its blocks have an act3 too, but a convolution after it
    nfnet = HookedVisionModel(timm.create_model("test_nfnet"))
    assert nfnet.taps["stages.0.0.hook_post"].signed


def test_a_chain_of_layers_has_a_site_after_each_activation_of_a_convolution() -> None:
    chain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
        nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 4 * 6, 7), nn.ReLU(),
        nn.Linear(7, 2),
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 12, 16)
    hooked = HookedVisionModel(chain)
    with torch.no_grad():
        logits, sites = hooked.run_with_cache(images)
        assert list(sites.keys()) == ["1.hook_post", "4.hook_post"]
        assert torch.equal(sites["1.hook_post"], chain[:2](images))
        assert torch.equal(sites["4.hook_post"], chain[:5](images))
        assert torch.equal(logits, chain(images))
        silent = hooked.run_with_hooks(
            images, fwd_hooks=[("4.hook_post", lambda maps, hook: maps * 0)]
        )
        assert torch.equal(silent[0], silent[1])


def test_vgg_has_a_site_for_each_of_its_convolutions() -> None:
    with torch.device("meta"):
        model = timm.create_model("vgg11_bn")
    sites = list(HookedVisionModel(model).hook_dict)
    assert sites == [f"features.{i}.hook_post" for i in (2, 6, 10, 13, 17, 20, 24, 27)] + [
        "hook_pooled"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny_patch4_window7_224",
        "mixer_s32_224",
        "gmlp_ti16_224",
        "beit_base_patch16_224",
        "cait_xxs24_224",
        "test_mambaout",  # axes [image, y, x, channel]
        "sequencer2d_s",
    ],
)
def test_other_architectures_are_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(SpecError, match=r"has no site .* vision transformers and networks of conv"):
        HookedVisionModel(model)


def test_language_models_and_plain_layers_are_refused() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=9,
        vocab_size=11,
    )  # fmt: skip
    for model in (BertModel(config), nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3), nn.ReLU())):
        with pytest.raises(SpecError, match=f"{type(model).__name__} has no site"):
            HookedVisionModel(model)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(images), self.second(self.first(images))


def test_a_block_that_returns_no_maps_says_so_when_it_is_read() -> None:
    hooked = HookedVisionModel(nn.Sequential(TwoOutputs()))
    images = torch.randn(2, 3, 6, 7)
    assert len(hooked(images)) == 2
    with pytest.raises(SpecError, match=r"0 \(TwoOutputs\) does not return maps .* leave this"):
        hooked.run_with_cache(images)
