"""B-cos residual networks explain themselves exactly and differ from their twins in layers only."""

from __future__ import annotations

import math
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from polysem.errors import CheckpointError, SpecError
from polysem.models.bcos import BcosConv2d, LogitBias, add_inverse, explanation_mode, logit_bias
from polysem.models.cnn import NORMS, BcosResNet, BcosSmallResNet, SmallResNet, official_resnet

LARGE = ["bcos_resnet18", "bcos_resnet34", "bcos_resnet50", "bcos_resnet101", "bcos_resnet152"]
SMALL = [f"bcos_resnet{depth}_32" for depth in (20, 32, 44, 56)]
COMPLETE = [norm for norm in NORMS if norm != "batch"]  # centred batch norm adds its mean


def images(n: int = 2, size: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return add_inverse(torch.rand(n, 3, size, size, generator=generator, dtype=dtype))


def lived_in(name: str, **options: object) -> nn.Module:
    """A network in float64 with weights of norms and running statistics as after training."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 1:
            nn.init.uniform_(weight, 0.5, 1.5)
    with torch.no_grad():
        model.train()(images(3))
    return model.eval()


def skeleton(name: str, **options: object) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name, **options)


def completeness_gap(model: nn.Module, x: Tensor) -> float:
    """The largest |v·(logits − bias) − Σ v·W(x) x| over images, for one random mix v of classes."""
    x = x.clone().requires_grad_()
    with explanation_mode(model):
        logits = model(x) - logit_bias(model)
        mixed = logits @ torch.randn(logits.shape[1], dtype=x.dtype)
        (w,) = torch.autograd.grad(mixed.sum(), x)
    return ((w * x).sum((1, 2, 3)) - mixed).abs().max().item()


@pytest.mark.parametrize("norm", COMPLETE)
@pytest.mark.parametrize("max_out", [1, 2])
def test_the_explanation_is_complete(norm: str, max_out: int) -> None:
    model = lived_in("bcos_resnet20_32", norm=norm, max_out=max_out)
    x = images()
    assert completeness_gap(model, x) < 1e-10
    assert (model(x) - logit_bias(model)).std() > 1e-4  # there is something to explain
    with explanation_mode(model):
        explained = model(x)
    assert torch.allclose(model(x), explained, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["bcos_resnet18", "bcos_resnet50"])
def test_the_explanation_of_large_networks_is_complete(name: str) -> None:
    assert completeness_gap(lived_in(name), images(1)) < 1e-10


@pytest.mark.parametrize("b", [1, 1.5, 2, 2.5])
def test_any_exponent_is_complete(b: float) -> None:
    assert completeness_gap(lived_in("bcos_resnet20_32", b=b), images(1)) < 1e-10


def test_centred_batch_norm_is_not_complete() -> None:
    assert completeness_gap(lived_in("bcos_resnet20_32", norm="batch"), images()) > 1e-3


def slow_resnet20(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """B-cos ResNet-20, written from arXiv 2306.10898 patch by patch."""

    def conv(key: str, x: Tensor, stride: int = 1) -> Tensor:
        w = state[f"{key}.weight"]
        size = w.shape[-1]
        patches = F.unfold(x, size, padding=size // 2, stride=stride)  # [image, patch, place]
        unit = w.flatten(1) / w.flatten(1).square().sum(1, keepdim=True).sqrt()
        response = torch.einsum("op,ipl->iol", unit, patches)
        norm = (patches.square().sum(1, keepdim=True) + 1e-6).sqrt()
        side = math.isqrt(response.shape[-1])
        return (response * (response / norm).abs()).unflatten(2, (side, side))

    def norm(key: str, x: Tensor) -> Tensor:
        var, weight = state[f"{key}.running_var"], state[f"{key}.weight"]
        return torch.stack(
            [x[:, c] * weight[c] / (var[c] + 1e-5).sqrt() for c in range(len(var))], 1
        )

    x = norm("bn1", conv("conv1", x))
    for stage in (1, 2, 3):
        for block in range(3):
            key = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(f"{key}.bn1", conv(f"{key}.conv1", x, stride))
            y = norm(f"{key}.bn2", conv(f"{key}.conv2", y))
            if stride == 2:
                x = norm(f"{key}.downsample.1", conv(f"{key}.downsample.0", x, stride))
            x = x + y
    logits = conv("fc", x).mean((2, 3))
    return logits - math.log(logits.shape[1] - 1)


def test_the_forward_pass_is_that_of_the_paper() -> None:
    model = lived_in("bcos_resnet20_32")
    x = images()
    assert torch.allclose(model(x), slow_resnet20(model.state_dict(), x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LARGE + SMALL)
def test_nothing_is_added_anywhere(name: str) -> None:
    model = skeleton(name)
    kinds = {type(m) for m in model.modules() if not list(m.children())}
    assert not kinds & {nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.BatchNorm2d}
    assert not [key for key, _ in model.named_parameters() if key.endswith("bias")]
    assert logit_bias(model) == pytest.approx(-math.log(model.num_classes - 1))


@pytest.mark.parametrize("name", LARGE + SMALL)
def test_twins_differ_in_layers_only(name: str) -> None:
    bcos = skeleton(name, num_classes=7)
    twin = skeleton(name.removeprefix("bcos_"), in_chans=6, num_classes=7)

    def geometry(model: nn.Module) -> dict[str, tuple[object, ...]]:
        return {
            key: (m.in_channels, m.out_channels, m.kernel_size, m.stride, tuple(m.padding))
            for key, m in model.named_modules()
            if isinstance(m, (nn.Conv2d, BcosConv2d)) and key != "fc"
        }

    assert geometry(bcos) == geometry(twin)
    assert bcos.num_features == twin.num_features and bcos.feature_info == twin.feature_info
    weights = {k: v.shape for k, v in twin.named_parameters() if not k.endswith("bias")}
    ours = {k: v.shape for k, v in bcos.named_parameters()}
    assert weights.keys() == ours.keys()
    assert ours["fc.weight"] == (*weights.pop("fc.weight"), 1, 1)


@pytest.mark.parametrize(("name", "millions"), [("bcos_resnet18", 11.69), ("bcos_resnet50", 25.54)])
def test_sizes_are_those_published(name: str, millions: float) -> None:
    model = skeleton(name)  # parameters as in the official package's documentation
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_standard_small_network() -> None:
    model = timm.create_model("resnet20_32").eval()
    assert isinstance(model, SmallResNet)
    assert sum(p.numel() for p in model.parameters()) == 272_474
    stages = timm.create_model("resnet20_32", features_only=True, out_indices=(0, 1, 2, 3))
    shapes = [tuple(f.shape[1:]) for f in stages(torch.rand(1, 3, 32, 32))]
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [32 // info["reduction"] for info in model.feature_info] == [32, 32, 16, 8]


@pytest.mark.parametrize("name", ["bcos_resnet20_32", "bcos_resnet18"])
def test_the_classifier_can_be_replaced(name: str) -> None:
    model = timm.create_model(name, max_out=2).eval()
    x = images(dtype=torch.float32)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5) and logit_bias(model) == pytest.approx(-math.log(4))
    assert isinstance(model.get_classifier(), BcosConv2d) and model.num_classes == 5
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert torch.equal(model(x), features) and features.shape == (2, model.num_features)
    assert logit_bias(model) == 0 and not any(isinstance(m, LogitBias) for m in model.modules())


def test_training_at_another_size() -> None:
    model = timm.create_model("bcos_resnet20_32", drop_rate=0.5, num_classes=3).train()
    assert model(images(2, 20, torch.float32)).shape == (2, 3)


@settings(max_examples=5, deadline=None)
@given(scale=st.floats(0.01, 100), unit=st.integers(0, 15))
def test_the_scale_of_weights_changes_nothing(scale: float, unit: int) -> None:
    model = lived_in("bcos_resnet20_32")
    before = model(images())
    with torch.no_grad():
        model.layer1[0].conv1.weight[unit] *= scale
    assert torch.allclose(model(images()), before, rtol=0, atol=1e-10)


def test_networks_pickle() -> None:
    model = lived_in("bcos_resnet20_32")
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(images()), model(images()))


def test_every_name_is_registered_and_unknown_norms_are_refused() -> None:
    for name in [*LARGE, *SMALL, *(n.removeprefix("bcos_") for n in SMALL)]:
        assert timm.is_model(name)
    assert isinstance(timm.create_model("bcos_resnet18"), BcosResNet)
    assert isinstance(timm.create_model("bcos_resnet20_32"), BcosSmallResNet)
    with pytest.raises(SpecError, match=r"no norm is called 'group'; there are batch_uncentered"):
        timm.create_model("bcos_resnet18", norm="group")


def officially(model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the keys of the official package."""
    convs = {f"{key}.weight" for key, m in model.named_modules() if isinstance(m, BcosConv2d)}
    return {
        (key.replace(".weight", ".linear.weight") if key in convs else key): value
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("max_out", [1, 2])
def test_official_weights_are_understood(norm: str, max_out: int) -> None:
    model = lived_in("bcos_resnet20_32", norm=norm, max_out=max_out)
    suffix = {
        "batch_uncentered": "_bnu-linear",
        "batch": "_bn-linear",
        "position": "_pn-linear",
        "layer": "_ln-linear",
        "none": "",
    }[norm]
    arch, model_args, state = official_resnet(f"resnet_20{suffix}", officially(model))
    assert arch == "bcos_resnet20_32"
    assert model_args == {"num_classes": 7, "norm": norm, "max_out": max_out}
    again = timm.create_model(arch, **model_args).double().eval()
    again.load_state_dict(state)
    assert torch.equal(again(images()), model(images()))


def test_a_norm_that_is_not_named_is_read_off_the_weights() -> None:
    for norm in ("batch_uncentered", "position", "none"):
        model = timm.create_model("bcos_resnet20_32", norm=norm)
        for name in ("cifar10_resnet20", "resnet_20-nomaxout"):
            assert official_resnet(name, officially(model))[1]["norm"] == norm
    assert official_resnet("bcos_resnet_18", officially(timm.create_model("bcos_resnet18")))[1] == {
        "num_classes": 1000,
        "norm": "batch_uncentered",
        "max_out": 1,
    }


@pytest.mark.parametrize("name", ["resnet19", "resnext50", "resnet", "resnet_20_anu-linear"])
def test_official_names_that_are_not_known(name: str) -> None:
    with pytest.raises(SpecError, match=rf"'{name}' is no official ResNet.*resnet18.*cifar10_"):
        official_resnet(name, {})


def test_official_weights_of_another_layout() -> None:
    with pytest.raises(CheckpointError, match=r"no weights of an official resnet18.*'stem\.w'"):
        official_resnet("resnet18", {"stem.w": torch.ones(1)})
