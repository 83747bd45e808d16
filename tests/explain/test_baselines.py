"""Gradients times input: by hand, and integrated gradients by their own sums."""

from __future__ import annotations

import pytest
import torch
from small_models import images_for, small_cnn, small_vit

from polysem.errors import SpecError
from polysem.explain.baselines import input_gradient, integrated_gradients
from polysem.explain.linear import linear_map
from polysem.explain.target import Target

NEURON = Target(4, "blocks.1.mlp.hook_post", pool="mean")


def test_input_gradient_by_hand() -> None:
    model = small_vit("bcos")
    x = images_for(model).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 3].sum(), x)
    expected = (x * gradient).sum(1)
    torch.testing.assert_close(input_gradient(model, x, Target(3)), expected)
    assert not input_gradient(model, x, Target(3)).requires_grad


def test_of_a_piecewise_linear_network_it_is_what_the_matrix_contributes() -> None:
    model = small_cnn("resnet18")
    x = images_for(model)
    found = linear_map(model, x, [Target(1)])
    torch.testing.assert_close(input_gradient(model, x, Target(1)), found.contributions[0].sum(1))


@pytest.mark.parametrize("target", [Target(2), NEURON])
def test_integrated_gradients_sum_to_the_difference(target: Target) -> None:
    model = small_vit("average_pooled")
    x = images_for(model)
    maps = integrated_gradients(model, x, target, steps=64)
    from polysem.explain.forward import explaining, target_values

    with explaining(model):
        there = target_values(model, x, [target])[0]
        start = target_values(model, torch.zeros_like(x), [target])[0]
    torch.testing.assert_close(maps.sum((1, 2)), (there - start).detach(), rtol=1e-3, atol=1e-4)


def test_each_image_may_have_a_class_of_its_own() -> None:
    model = small_vit("average_pooled")
    x = images_for(model)
    own = torch.tensor([3, 0])
    for method in (input_gradient, integrated_gradients):
        both = method(model, x, own)
        for i, index in enumerate(own.tolist()):
            alone = method(model, x[i : i + 1], Target(index))
            torch.testing.assert_close(both[i], alone[0])


def test_a_straight_line_takes_one_step() -> None:
    """Of a linear model the gradient is the same everywhere on the way."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 2)).double()
    x = torch.rand(3, 2, 3, 4, dtype=torch.float64)
    exact = input_gradient(model, x, Target(1))
    torch.testing.assert_close(integrated_gradients(model, x, Target(1), steps=1), exact)
    shifted = integrated_gradients(model, x, Target(1), baseline=torch.ones(2, 1, 1), steps=1)
    weight = model[1].weight[1].reshape(2, 3, 4).detach()
    torch.testing.assert_close(shifted, ((x - 1) * weight).sum(1))


def test_bad_options_get_a_sentence() -> None:
    model = small_vit("average_pooled")
    with pytest.raises(SpecError, match="at least one step"):
        integrated_gradients(model, images_for(model), Target(0), steps=0)
    with pytest.raises(SpecError, match="does not fit images"):
        integrated_gradients(model, images_for(model), Target(0), baseline=torch.zeros(5, 2))
