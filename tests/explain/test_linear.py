"""W(x) against its definition, the product of the matrices of all layers, and Jacobians."""

from __future__ import annotations

import pytest
import timm
import torch
from small_models import images_for, small_cnn, small_vit
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.explain.linear import all_targets, bcos, linear_map, require_linear, rows
from polysem.explain.target import Target
from polysem.models.bcos import BcosLinear


class Chain(nn.Module):
    """Three layers of each kind with what W(x) is made of written out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.in_chans = kind, 2
        if kind == "bcos":
            layers: list[nn.Module] = [BcosLinear(12, 5, max_out=2), BcosLinear(5, 3)]
        else:
            act = nn.ReLU() if kind == "relu" else nn.LeakyReLU(0.3)
            layers = [nn.Linear(12, 5), act, nn.Linear(5, 3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images.flatten(1))
        return out

    def matrix(self, image: Tensor) -> Tensor:
        """The product of weights and diagonal matrices, [class, input]."""
        x, product = image.flatten(), torch.eye(image.numel(), dtype=image.dtype)
        for layer in self.layers:
            if isinstance(layer, BcosLinear):
                weight = layer.unit_weight()
                response = (weight @ x).unflatten(0, (-1, layer.max_out))
                winner = response.argmax(1) + torch.arange(len(response)) * layer.max_out
                linear, best = weight[winner], response.amax(1)
                step = torch.diag(best.abs() / x.norm()) @ linear
            elif isinstance(layer, nn.Linear):
                step = layer.weight
            else:
                low = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
                step = torch.diag(torch.where(x > 0, torch.ones_like(x), torch.full_like(x, low)))
            x = step @ x + (layer.bias if isinstance(layer, nn.Linear) else 0)
            product = step @ product
        return product


@pytest.mark.parametrize("kind", ["bcos", "relu", "leaky"])
def test_the_full_matrix_is_the_product_of_the_layers_matrices(kind: str) -> None:
    torch.manual_seed(0)
    model = Chain(kind).double()
    x = torch.randn(4, 2, 2, 3, dtype=torch.float64)
    found = linear_map(model, x, all_targets(model, images=x))
    assert found.weights.shape == (3, 4, 2, 2, 3)
    expected = torch.stack([model.matrix(image) for image in x], dim=1)
    torch.testing.assert_close(found.weights.flatten(2), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.values, model(x).T)


@pytest.mark.parametrize("name", ["bcos", "bcos_conv_stem"])
def test_rows_are_the_same_however_many_at_a_time(name: str) -> None:
    model = small_vit(name)
    x = images_for(model)
    targets = [*all_targets(model, images=x), Target(3, "blocks.1.mlp.hook_post", tail="lower")]
    whole = linear_map(model, x, targets, rows_at_a_time=100).weights
    for size in (1, 5):
        some = linear_map(model, x, targets, rows_at_a_time=size).weights
        torch.testing.assert_close(some, whole, rtol=1e-10, atol=1e-14)
    for k in (0, 5):  # one row takes the fused kernels of attention
        one = linear_map(model, x, [targets[k]]).weights[0]
        torch.testing.assert_close(one, whole[k], rtol=1e-9, atol=1e-12)
    alone = linear_map(model, x[1:], targets).weights[:, 0]
    torch.testing.assert_close(alone, whole[:, 1], rtol=1e-10, atol=1e-14)


def test_max_pooling_networks_go_backwards_for_many_rows() -> None:
    model = timm.create_model("resnet18", num_classes=3, channels=(4, 5, 6, 7)).eval().double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    found = linear_map(model, x, all_targets(model, images=x))
    one = linear_map(model, x, [Target(2)])
    torch.testing.assert_close(found.weights[2], one.weights[0])


def test_between_two_sites_it_is_the_jacobian_of_the_part_between() -> None:
    model = small_cnn("resnet18")
    x = images_for(model)
    source, site = "layer2.0.hook_post", "layer2.1.hook_post"
    targets = [Target(u, site, position=5) for u in (0, 3)]
    found = linear_map(model, x, targets, source=source)
    assert found.weights.shape == (2, *found.source.shape)
    block = model.layer2[1]
    for i, target in enumerate(targets):
        jacobian = torch.autograd.functional.jacobian(
            lambda a, u=target.unit: block(a)[:, u].flatten(1)[:, 5], found.source
        )
        expected = torch.stack([jacobian[k, k] for k in range(2)])
        torch.testing.assert_close(found.weights[i], expected)


def test_nothing_of_a_later_site_reaches_an_earlier_one() -> None:
    model = small_vit("bcos")
    found = linear_map(
        model, images_for(model), [Target(0, "hook_embed")], source="blocks.1.hook_resid_pre"
    )
    assert not found.weights.any()


def test_every_unit_and_place_is_a_row() -> None:
    model = small_vit("bcos")
    x = images_for(model)
    assert len(all_targets(model, images=x)) == 5
    assert len(all_targets(model, site="blocks.0.mlp.hook_post", images=x)) == 40
    places = all_targets(model, site="blocks.0.attn.hook_z", images=x, positions=True)
    assert len(places) == 3 * 6 and places[-1].position == 5
    cnn = small_cnn("resnet18")
    assert len(all_targets(cnn, site="layer2.0.hook_post", images=images_for(cnn))) == 10
    with pytest.raises(SpecError, match="give some, or n_units"):
        all_targets(model)


def test_contributions_of_a_head_sum_to_its_length() -> None:
    model = small_vit("bcos")
    x = images_for(model)
    target = Target(2, "blocks.2.attn.hook_z")
    found = linear_map(model, x, [target])
    torch.testing.assert_close(bcos(model, x, target).sum((1, 2)), found.values[0])


def test_other_networks_are_refused_by_the_layer_that_bends() -> None:
    for model, message in (
        (small_vit("class_token"), r"blocks.0.norm1 \(LayerNorm\)"),
        (timm.create_model("efficientnet_b0", num_classes=2), r"\(SiLU\)"),
    ):
        with pytest.raises(SpecError, match=message):
            require_linear(model)
        with pytest.raises(SpecError, match="has no B-cos layers"):
            bcos(model, torch.rand(1, 3, 16, 24), Target(0))
    model = small_vit("bcos")
    with pytest.raises(SpecError, match="no target is named"):
        linear_map(model, images_for(model), [])
    with pytest.raises(SpecError, match="decides where heads look"):
        linear_map(model, images_for(model), [Target(0)], source="blocks.0.attn.hook_pattern")


def test_values_without_a_graph_have_zero_rows() -> None:
    start = torch.rand(2, 3, requires_grad=True)
    assert torch.equal(rows(torch.ones(4, 2), start), torch.zeros(4, 2, 3))
