"""B-cosified networks: the function that went in at one end, one matrix W(x) at the other."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import timm
import torch
from small_models import VITS, small_vit
from timm.models.resnet import ResNet
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import LogitBias, add_inverse, explanation_mode, logit_bias
from polysem.models.bcosified import BcosifiedBatchNorm2d
from polysem.models.bcosify import bcosify
from polysem.models.hooked import HookedVisionModel

CNNS: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": (6, 10, 12, 14)},
    "resnet26d": {"channels": (4, 6, 8, 10), "act_layer": nn.SiLU},
    "resnext50_32x4d": {"channels": (32, 32, 32, 32), "layers": (1, 1, 1, 1)},
    "resnet20_32": {},
}
NAMES = [*(name for name in VITS if not name.startswith(("bcos", "swiglu"))), *CNNS]


def network(name: str) -> Any:
    """Return a standard network in float64 with everything drawn at random."""
    if name in VITS:
        return small_vit(name)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **CNNS[name]).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values, centre in (("weight", 1), ("bias", 0), ("running_mean", 0)):
                    noise = 0.3 * torch.randn(module.num_features, generator=generator)
                    getattr(module, values).copy_(centre + noise)
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model


def images(model: Any) -> Tensor:
    size = getattr(getattr(model, "patch_embed", None), "img_size", (32, 40))
    generator = torch.Generator().manual_seed(2)
    return torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)


def normalised(model: Any, x: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(model.pretrained_cfg[k], dtype=x.dtype)[:, None, None] for k in ("mean", "std")
    )
    return (x - mean) / std


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_the_function_that_went_in(name: str) -> None:
    plain = network(name)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    made, x = bcosify(plain), images(plain)
    expected = plain(normalised(plain, x))
    assert expected.std() > 1e-2
    torch.testing.assert_close(made(add_inverse(x)), expected, rtol=0, atol=1e-10)
    x = x.float()
    with explanation_mode(made.float()):
        explained = made(add_inverse(x))
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(explained, expected.float(), rtol=0, atol=1e-5 * max(largest, 1))
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["class_token", "resnet18", "resnet20_32"])
def test_it_starts_so_in_training_too(name: str) -> None:
    plain = network(name)
    made, x = bcosify(plain).train(), images(plain)
    expected = plain.train()(normalised(plain, x))
    torch.testing.assert_close(made(add_inverse(x)), expected, rtol=0, atol=1e-9)


def additive_terms(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Return what is added on the way as (parameter to differentiate by, value added).

    Biases of queries and keys, and positions inside attention, only shape the pattern.
    """
    tokens = ("pos_embed", "cls_token", "reg_token")
    terms = [(p, p.detach()) for n, p in model.named_parameters() if n in tokens]
    for name, module in model.named_modules():
        if isinstance(module, BcosifiedBatchNorm2d):
            scale = module.weight / (module.running_var + module.eps).sqrt()
            terms.append((module.bias, (module.bias - module.running_mean * scale).detach()))
        elif getattr(module, "bias", None) is not None and isinstance(module.bias, nn.Parameter):
            value = module.bias.detach().clone()
            if name.endswith("qkv"):
                value[: 2 * len(value) // 3] = 0
            terms.append((module.bias, value))
    return terms


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_contributions_and_what_is_added_sum_to_the_logit(name: str, share: float) -> None:
    plain = network(name)
    made = bcosify(plain, share=share)
    x = add_inverse(images(plain)).requires_grad_()
    terms = additive_terms(made)
    with explanation_mode(made):
        logits = made(x)
        for unit in (0, 3):
            logit = logits[1, unit]
            gradients = torch.autograd.grad(
                logit, [x, *(p for p, _ in terms)], retain_graph=True, materialize_grads=True
            )
            total = (x * gradients[0]).sum() + logit_bias(made)
            for gradient, (_, value) in zip(gradients[1:], terms, strict=True):
                total = total + (gradient * value).sum()
            torch.testing.assert_close(total, logit, rtol=0, atol=1e-10)
            if share == 1:  # only positions and added tokens are left beside the pixels
                assert all(
                    not gradient.any()
                    for gradient, (parameter, _) in zip(gradients[1:], terms, strict=True)
                    if parameter.ndim == 1
                )
    torch.testing.assert_close(made(x), logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["average_pooled", "resnet18"])
def test_without_added_positions_contributions_alone_are_the_logit(name: str) -> None:
    plain = network(name)
    if name == "average_pooled":
        plain.pos_embed = None
    made = bcosify(plain, share=1)
    x = add_inverse(images(plain)).requires_grad_()
    with explanation_mode(made):
        logit = made(x)[0, 2]
        (row,) = torch.autograd.grad(logit, x)
    torch.testing.assert_close((x * row)[0].sum() + logit_bias(made), logit, rtol=0, atol=1e-10)


def test_nothing_but_b_biases_pooling_and_logit_bias_changes_the_function() -> None:
    """With B = 1, nothing added, no max-pooling and two classes the last step changes nothing."""
    torch.manual_seed(0)
    plain = timm.create_model("resnet20_32", num_classes=2).double().eval()  # ln(C − 1) is 0
    x = images(plain)
    with torch.no_grad():
        for layer in plain.modules():
            if isinstance(layer, nn.Linear):
                layer.bias.zero_()
    expected = plain(normalised(plain, x))
    same = bcosify(plain, b=1, share=1)
    torch.testing.assert_close(same(add_inverse(x)), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(bcosify(plain, b=2, share=1)(add_inverse(x)), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["class_token", "resnet18"])
def test_it_moves_without_a_jump(name: str) -> None:
    made: Any = bcosify(network(name))
    x = add_inverse(images(network(name)))
    outputs = []
    for share in (0, 1e-6, 0.5 - 1e-6, 0.5, 1 - 1e-6, 1):
        made.conversion.share = share
        outputs.append(made(x))
    for a, b in ((0, 1), (2, 3), (4, 5)):
        torch.testing.assert_close(outputs[a], outputs[b], rtol=0, atol=1e-3)
    assert not torch.allclose(outputs[0], outputs[3], atol=1e-2)


@pytest.mark.parametrize("name", ["class_token", "standard", "resnet18"])
def test_a_new_classifier_is_of_the_same_kind(name: str) -> None:
    plain = network(name)
    made: Any = bcosify(plain, share=1)
    made.reset_classifier(7)
    x = add_inverse(images(plain)).requires_grad_()
    assert [m.full for m in made.modules() if isinstance(m, LogitBias)] == pytest.approx(
        [-math.log(6)]
    )
    with explanation_mode(made):
        logits = made(x)
        assert logits.shape == (2, 7)
        (row,) = torch.autograd.grad(logits[0, 6], x)
    if isinstance(plain, ResNet) or name == "standard":
        total = (x * row)[0].sum() + logit_bias(made)
        torch.testing.assert_close(total, logits[0, 6], rtol=0, atol=1e-10)
    made.reset_classifier(0)
    assert made(x).shape == (2, made.num_features)
    assert logit_bias(made) == 0


def test_a_network_without_classifier() -> None:
    for name in ("class_token", "resnet18"):
        plain = network(name)
        plain.reset_classifier(0)
        made, x = bcosify(plain), images(plain)
        torch.testing.assert_close(made(add_inverse(x)), plain(normalised(plain, x)))


@pytest.mark.parametrize("name", ["class_token", "standard", "resnet18"])
def test_copies_have_a_conversion_of_their_own(name: str) -> None:
    plain = network(name)
    made: Any = bcosify(plain)
    x = add_inverse(images(plain))
    expected = made(x)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        other.conversion.share = 1
        assert torch.equal(made(x), expected)
        assert not torch.allclose(other(x), expected, atol=1e-3)
        other.reset_classifier(3)
        assert other(x).shape == (2, 3)


def test_the_random_state_is_left_alone() -> None:
    plain = network("class_token")
    before = torch.get_rng_state()
    bcosify(plain)
    assert torch.equal(torch.get_rng_state(), before)


def test_hooks_read_it_like_any_network() -> None:
    plain = network("class_token")
    made, x = bcosify(plain), images(plain)
    output, cache = HookedVisionModel(made).run_with_cache(add_inverse(x))
    expected, before = HookedVisionModel(plain).run_with_cache(normalised(plain, x))
    torch.testing.assert_close(output, expected)
    assert cache.keys() == before.keys()
    for site, value in before.items():
        torch.testing.assert_close(cache[site], value, rtol=0, atol=1e-10)
    taps, plain_taps = HookedVisionModel(made).taps, HookedVisionModel(plain).taps
    assert {n: t.signed for n, t in taps.items()} == {n: t.signed for n, t in plain_taps.items()}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_gradients_reach_every_weight_also_under_autocast(share: float) -> None:
    """Biases too, when they count nothing: several processes wait for all gradients."""
    for name in ("standard", "resnet18"):
        plain = network(name).float()
        made: Any = bcosify(plain, share=share).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = made(add_inverse(images(plain).float()))
        logits.square().sum().backward()
        for parameter_name, parameter in made.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: small_vit("bcos"), "6 channels"),
        (lambda: small_vit("swiglu_scale_norms"), "blocks.0.mlp is a GluMlp"),
        (lambda: small_vit("class_token", global_pool="map"), "global_pool='map'"),
        (lambda: timm.create_model("resnet18", in_chans=1), "has 1"),
        (lambda: timm.create_model("resnet18", global_pool="max"), "global_pool='max'"),
        (lambda: timm.create_model("seresnet50", layers=(1, 1, 1, 1)), "layer1.0.se"),
        (lambda: timm.create_model("convnext_atto"), "ConvNeXt"),
        (lambda: timm.create_model("resnet18", norm_layer="groupnorm"), "GroupNorm"),
        (lambda: nn.Linear(2, 2), "Linear"),
        (lambda: bcosify(network("class_token")), "BcosifiedVit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "from",
)
def test_what_has_no_b_cos_form_is_refused_by_name(build: Any, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        bcosify(build())


def test_bad_colours_are_refused() -> None:
    with pytest.raises(SpecError, match="3 colours"):
        bcosify(network("class_token"), mean=(0.5,), std=(1, 1, 1))
    with pytest.raises(SpecError, match="positive"):
        bcosify(network("class_token"), std=(1, 0, 1))
