"""Official B-cos ResNets, loaded here, give the same logits and the same explanations.

The `bcos` package builds the networks; its weights are random, its norms and running statistics
as after some training.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polysem import _torchvision
from polysem.models.bcos import add_inverse, explanation_mode, logit_bias
from polysem.models.load import load_model

_torchvision.repair()
bcos = pytest.importorskip("bcos", reason="the official package is a development dependency")

from bcos.experiments.utils import Experiment  # noqa: E402
from bcos.models import pretrained  # noqa: E402


def cifar(name: str) -> Callable[[], nn.Module]:
    return lambda: Experiment("CIFAR10", "norm_ablations_final", name).get_model()


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], int]] = {
    "resnet18": ("bcos_resnet18", pretrained.resnet18, 96),
    "resnet50": ("bcos_resnet50", pretrained.resnet50, 96),
    "cifar10_resnet20": ("bcos_resnet20_32", bcos.models.resnet.cifar10_resnet20, 32),
    "resnet_20": ("bcos_resnet20_32", cifar("resnet_20"), 32),
    "resnet_20_bnu-linear": ("bcos_resnet20_32", cifar("resnet_20_bnu-linear"), 32),
    "resnet_20_bn-linear": ("bcos_resnet20_32", cifar("resnet_20_bn-linear"), 32),
    "resnet_20_ln-linear": ("bcos_resnet20_32", cifar("resnet_20_ln-linear"), 32),
    "resnet_32_pn-linear-nomaxout": (
        "bcos_resnet32_32",
        cifar("resnet_32_pn-linear-nomaxout"),
        32,
    ),
}


def images(size: int) -> Tensor:
    return add_inverse(torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(7)))


def lived_in(model: nn.Module, x: Tensor) -> nn.Module:
    """Random weights of convolutions and norms, and the running statistics of a batch."""
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = None  # a plain average, here of one batch
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1:
            nn.init.uniform_(weight, 0.5, 1.5)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def explanation(model: nn.Module, mode: Any, x: Tensor, classes: Tensor) -> Tensor:
    """The row of W(x) of one class an image, [image, channel, y, x]."""
    x = x.clone().requires_grad_()
    with mode:
        chosen = model(x).gather(1, classes[:, None])
        (w,) = torch.autograd.grad(chosen.sum(), x)
    return w


def differences(peer: nn.Module, ours: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest difference of logits and of maps, and the size of the largest map value."""
    with torch.no_grad():
        theirs, logits = peer(x), ours(x)
    classes = theirs.argmax(1)
    w_theirs = explanation(peer, peer.explanation_mode(), x, classes)
    w_ours = explanation(ours, explanation_mode(ours), x, classes)
    assert theirs.std() > 1e-4  # not only the logit bias is compared
    return (logits - theirs).abs().max(), (w_ours - w_theirs).abs().max(), w_theirs.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_explanations_are_the_same(name: str, tmp_path: Path) -> None:
    arch, build, size = NETWORKS[name]
    torch.manual_seed(2)
    x = images(size)
    peer = lived_in(build(), x)
    torch.save(peer.state_dict(), tmp_path / "official.pth")
    loaded = load_model(f"bcos:{name}", weights=tmp_path / "official.pth")
    assert loaded.name == arch and loaded.transform.inverse
    assert logit_bias(loaded.model) == pytest.approx(-math.log(loaded.model.num_classes - 1))

    logits, maps, largest = differences(peer, loaded.model, x)
    assert logits <= 1e-5
    assert maps <= 1e-5 and maps <= 1e-3 * largest  # maps may be small


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_same_function(name: str, tmp_path: Path) -> None:
    """Statistics far from those of the images magnify rounding; in float64 nothing is left."""
    _, build, size = NETWORKS[name]
    torch.manual_seed(3)
    x = images(size)
    peer = lived_in(build(), x)
    for key, buffer in peer.named_buffers():
        if key.endswith("running_var"):
            buffer.mul_(torch.rand_like(buffer) + 0.5)
        if key.endswith("running_mean"):
            buffer.normal_()
    torch.save(peer.state_dict(), tmp_path / "official.pth")
    ours = load_model(f"bcos:{name}", weights=tmp_path / "official.pth").model
    logits, maps, _ = differences(peer.double(), ours.double(), x[:1].double())
    assert logits <= 1e-9 and maps <= 1e-9


def test_released_networks_see_images_as_we_show_them() -> None:
    from PIL import Image

    noise = torch.randint(0, 256, (300, 280, 3), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    for build, spec in (
        (pretrained.resnet18, "timm:bcos_resnet18"),
        (cifar("resnet_20"), "timm:bcos_resnet20_32"),
    ):
        peer = build()
        theirs = peer.transform if hasattr(peer, "transform") else None
        shown = image if theirs is not None else image.crop((0, 0, 32, 32))
        if theirs is None:
            theirs = bcos.presets.CIFAR10ClassificationPresetTest(is_bcos=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            transform = load_model(spec).transform
        ours = transform.normalize(transform(shown)[None])[0]
        assert torch.allclose(ours, theirs(shown), rtol=0, atol=1e-6)
