"""CAMs by their formulas, by the package called directly, and by the sums that theory promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from small_models import images_for, small_cnn, small_vit
from torch import Tensor

from polysem.errors import SpecError
from polysem.explain.cam import cam, gradcam, hirescam
from polysem.explain.cam_layer import cam_layer
from polysem.explain.forward import explaining, target_values
from polysem.explain.maps import spread
from polysem.explain.target import Target

KINDS = [GradCAM, HiResCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, EigenCAM]


def tokens_first(n_prefix: int, grid: tuple[int, int]) -> Any:
    return lambda tokens: tokens[:, n_prefix:].transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["resnet18", "class_token", "average_pooled", "bcos"])
def test_as_the_package_called_directly(name: str, kind: Any) -> None:
    vit = name != "resnet18"
    model = small_vit(name) if vit else small_cnn(name)
    x = images_for(model)
    layer = cam_layer(model, Target(2))
    if vit:
        module = {
            "blocks.2.ln1.hook_normalized": lambda: model.blocks[2].norm1,
            "ln_final.hook_normalized": lambda: model.norm,
            "blocks.2.hook_resid_post": lambda: model.blocks[2],
        }[layer]()
    else:
        module = model.layer4[-1]
    ours = cam(model, x, Target(2), kind, as_package=True)
    reshape = tokens_first(model.num_prefix_tokens, (2, 3)) if vit else None
    package = kind(model=model, target_layers=[module], reshape_transform=reshape)
    theirs = package(x.clone().requires_grad_(), [ClassifierOutputTarget(2)] * 2)
    package.activations_and_grads.release()
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "average_pooled", "norm_before_pool"])
def test_gradcam_and_hirescam_by_their_formulas(name: str) -> None:
    model, features, head = split(name)
    x = images_for(model)
    maps = features(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(head(maps)[:, 1].sum(), maps)
    high = spread((gradient * maps).sum(1), x.shape[2:]).detach()  # type: ignore[arg-type]
    low = (gradient.mean((2, 3), keepdim=True) * maps).sum(1)
    torch.testing.assert_close(hirescam(model, x, Target(1)), high, rtol=1e-8, atol=1e-10)
    expected = spread(low, x.shape[2:]).detach()  # type: ignore[arg-type]
    torch.testing.assert_close(gradcam(model, x, Target(1)), expected, rtol=1e-8, atol=1e-10)


def split(name: str) -> tuple[Any, Any, Any]:
    """Return a model, its maps and what comes after them, with the last norm's scale held."""
    if name == "resnet18":
        model = small_cnn(name)
        return model, model.forward_features, model.forward_head
    if name == "norm_before_pool":
        model = small_vit("class_token", class_token=False, global_pool="avg", fc_norm=False)
    else:
        model = small_vit("average_pooled")

    def features(x: Tensor) -> Tensor:
        tokens = model.patch_embed(x) + model.pos_embed
        for block in model.blocks:
            tokens = block(tokens)
        return model.norm(tokens).transpose(1, 2).unflatten(2, (2, 3))

    def head(maps: Tensor) -> Tensor:
        pooled = maps.flatten(2).mean(2)
        if name == "average_pooled":
            norm = model.fc_norm
            scale = (pooled.var(1, correction=0, keepdim=True) + norm.eps).rsqrt().detach()
            pooled = (pooled - pooled.mean(1, keepdim=True)) * scale * norm.weight + norm.bias
        out: Tensor = model.head(pooled)
        return out

    return model, features, head


@pytest.mark.parametrize(
    "name", ["resnet18", "average_pooled", "norm_before_pool", "bcos", "bcos_resnet20_32"]
)
def test_hirescam_sums_to_the_logit_less_its_bias(name: str) -> None:
    if name == "norm_before_pool":
        model = small_vit("class_token", class_token=False, global_pool="avg", fc_norm=False)
    else:
        model = small_vit(name) if "resnet" not in name else small_cnn(name)
    x = images_for(model)
    logit = model(x)[:, 3].detach()
    if "bcos" in name:
        bias = model.logit_bias.value if "resnet" in name else model.head.bias.value
    elif name == "average_pooled":  # the norm after pooling has a bias of its own
        bias = float((model.head.weight[3] @ model.fc_norm.bias + model.head.bias[3]).detach())
    else:
        bias = float((model.fc if "resnet" in name else model.head).bias[3].detach())
    summed = hirescam(model, x, Target(3)).sum((1, 2))
    tolerance = 1e-3 if "bcos" in name else 1e-9  # 1e-6 is added in norms of B-cos layers
    torch.testing.assert_close(summed, logit - bias, rtol=tolerance, atol=1e-9)


def test_without_holding_the_norm_it_would_sum_to_nothing() -> None:
    """What the sum is read against: such a norm undoes any scaling of the tokens."""
    model = small_vit("average_pooled")
    x = images_for(model).requires_grad_()
    seen: list[Tensor] = []
    handle = model.blocks[2].register_forward_hook(lambda m, i, out: seen.append(out))
    value = model(x)[:, 3].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(value, seen[0])
    assert (gradient * seen[0]).sum((1, 2)).abs().max() < 1e-3
    assert hirescam(model, x, Target(3)).sum((1, 2)).abs().min() > 1e-2


def test_neurons_have_maps_too() -> None:
    model = small_cnn("resnet18")
    x = images_for(model)
    target = Target(3, "layer2.1.hook_post", pool="mean")
    with explaining(model):
        value = target_values(model, x, [target])[0]
    block = model.layer2[1]
    before = torch.nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool, model.layer1,
                                 model.layer2[0])  # fmt: skip
    maps = before(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(block(maps)[:, 3].mean((1, 2)).sum(), maps)
    expected = spread((gradient * maps).sum(1), (32, 48)).detach()
    torch.testing.assert_close(hirescam(model, x, target), expected)
    assert value.abs().min() > 0


def test_a_layer_of_ones_own() -> None:
    model = small_vit("class_token")
    x = images_for(model)
    maps = hirescam(model, x, Target(1), layer="blocks.1.hook_resid_post")
    assert maps.shape == (2, 16, 24) and maps.abs().max() > 0
    with pytest.raises(SpecError, match="does not depend on blocks"):
        hirescam(model, x, Target(1, "blocks.0.mlp.hook_post"), layer="blocks.2.hook_resid_post")
    with pytest.raises(SpecError, match="no patches"):
        hirescam(model, x, Target(1), layer="hook_pooled")
    with pytest.raises(SpecError, match="has no site"):
        hirescam(model, x, Target(1), layer="blocks.7.hook_resid_post")


def test_a_users_gradients_stay() -> None:
    model = timm.create_model("resnet20_32", num_classes=3)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    before = model.fc.weight.grad.clone()
    gradcam(model, torch.rand(1, 3, 32, 32), Target(0))
    assert torch.equal(model.fc.weight.grad, before) and model.training
