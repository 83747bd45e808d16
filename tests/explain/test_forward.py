"""The numbers that are explained, beside the same read off the activations by hand."""

from __future__ import annotations

import pytest
import torch
from small_models import images_for, small_cnn, small_vit
from torch import Tensor, nn

from polysem.errors import NonFiniteError, SpecError
from polysem.explain.forward import explaining, forward, require_finite_map, target_values
from polysem.explain.target import Target, TargetLike
from polysem.models.hooked import HookedVisionModel


def value(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    with explaining(model):
        return target_values(model, images, [target])[0]


def test_every_kind_of_target_by_hand() -> None:
    model = small_vit("class_token")
    x = images_for(model)
    logits, cache = HookedVisionModel(model).run_with_cache(x)
    mlp, z = "blocks.1.mlp.hook_post", "blocks.2.attn.hook_z"
    neuron, lengths = cache[mlp][:, :, 7], cache[z][:, :, 1].norm(dim=-1)
    by_hand = {
        Target(3): logits[:, 3],
        Target(7, mlp): neuron[:, 1:].max(1).values,
        Target(7, mlp, tail="lower"): -neuron[:, 1:].min(1).values,
        Target(7, mlp, pool="mean"): neuron[:, 1:].mean(1),
        Target(7, mlp, tail="lower", pool="mean"): -neuron[:, 1:].mean(1),
        Target(7, mlp, pool="cls"): neuron[:, 0],
        Target(7, mlp, position=4): neuron[:, 5],
        Target(1, z): lengths[:, 1:].max(1).values,
        Target(1, z, pool="mean"): lengths[:, 1:].mean(1),
        Target(5, "hook_pooled"): cache["hook_pooled"][:, 5],
        Target(5, "hook_pooled", tail="lower"): -cache["hook_pooled"][:, 5],
    }
    with explaining(model):
        found = target_values(model, x, list(by_hand))
    torch.testing.assert_close(found, torch.stack(list(by_hand.values())))
    own = torch.tensor([4, 0])
    assert torch.equal(value(model, x, own), torch.stack([logits[0, 4], logits[1, 0]]))


def test_a_channel_of_a_cnn_by_hand() -> None:
    model = small_cnn("resnet18")
    x = images_for(model)
    _, cache = HookedVisionModel(model).run_with_cache(x)
    maps = cache["layer2.0.hook_post"][:, 3]
    assert torch.equal(value(model, x, Target(3, "layer2.0.hook_post")), maps.amax((1, 2)))
    place = Target(3, "layer2.0.hook_post", position=maps.shape[2] + 1)
    assert torch.equal(value(model, x, place), maps[:, 1, 1])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(5), "there is no class 5: the model has 5"),
        (Target(40, "blocks.1.mlp.hook_post"), "has no unit 40: it has 40, from 0 on"),
        (Target(3, "blocks.1.attn.hook_z"), "has no unit 3: it has 3"),
        (Target(0, "blocks.1.mlp.hook_post", position=6), "has no patch 6: it has 6"),
        (Target(0, "blocks.1.mlp.hook_post", pool="cls"), "has no class token"),
        (Target(0, "blocks.7.mlp.hook_post"), "this model has no site"),
        (torch.tensor([0, 5]), "there is no class 5"),
        (torch.tensor([0]), "one for each of the 2 images"),
        (torch.tensor([0.0, 1.0]), "int64"),
    ],
)
def test_what_does_not_exist_gets_a_sentence(target: TargetLike, message: str) -> None:
    model = small_vit("average_pooled")
    with pytest.raises(SpecError, match=message):
        value(model, images_for(model), target)


def test_images_that_do_not_fit_get_a_sentence() -> None:
    model = small_vit("bcos")
    x = images_for(model)
    for images, message in (
        (x[0], "images are floats"),
        (x.long(), "images are floats"),
        (x[:0], "no image"),
        (x[:, :3], r"6 channels, not 3; B-cos networks take \[x, 1 − x\]"),
        (x[:, :, :5, :5], "images of 5 × 5 px do not go through this model, built for 16 × 24"),
    ):
        with pytest.raises(SpecError, match=message):
            value(model, images, Target(0))
    with pytest.raises(SpecError, match="do not go through this model"):
        value(small_vit("class_token"), torch.rand(1, 3, 8, 8).double(), Target(0))
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="an image holds NaN"):
        value(model, broken, Target(0))


def test_numbers_and_maps_that_are_not_finite_are_refused() -> None:
    model = small_vit("class_token")
    with torch.no_grad():
        model.head.weight[2] = torch.inf
    with pytest.raises(NonFiniteError, match="class 2 is NaN or infinite"):
        value(model, images_for(model), Target(2))
    maps = torch.zeros(2, 3, 4)
    assert require_finite_map(maps, "some") is maps
    maps[1, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="the map of some for image 1"):
        require_finite_map(maps, "some")


def test_an_edit_takes_the_place_of_an_activation() -> None:
    model = small_vit("average_pooled")
    x = images_for(model)
    site = "blocks.2.hook_resid_post"
    with explaining(model):
        plain = target_values(model, x, [Target(1)])
        edited = target_values(
            model, x, [Target(1), Target(4, site)], edits={site: lambda a: 0 * a}
        )
    assert not torch.allclose(plain[0], edited[0])
    assert torch.equal(edited[1], torch.zeros(2).double())


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(SpecError, match="str is no network"), explaining("vit"):  # type: ignore[arg-type]
        pass


def test_inference_mode_around_does_not_matter() -> None:
    model = small_vit("bcos")
    with torch.inference_mode():
        x = images_for(model)
        assert value(model, x, Target(0)).isfinite().all()


def test_forward_says_where_patches_start() -> None:
    model = small_vit("registers_layerscale_qknorm")
    _, n_prefix, has_class = forward(model, images_for(model), {})
    assert (n_prefix, has_class) == (3, True)
