"""Gated passes against hooks set by hand, and what cannot be gated."""

from typing import Any

import pytest
import torch
from small_models import VITS, images_for, noise_like, small_cnn, small_vit

from polysem.errors import SpecError
from polysem.models.hooked import HookedVisionModel
from polysem.probe.gates import Gate, GatedViT, frozen, rotated_heads, target_cost


@pytest.mark.parametrize("name", VITS)
def test_blocks_one_after_the_other_are_the_model(name: str) -> None:
    model = small_vit(name)
    vit, images = GatedViT(model), images_for(model)
    with torch.no_grad():
        torch.testing.assert_close(vit.finish(vit.embed(images)), model(images))
        stream = vit.stream(images)
        for layer in range(vit.n_blocks + 1):
            torch.testing.assert_close(vit.finish(stream[layer], layer), model(images))
    vit.check(images)


@pytest.mark.parametrize("name", ["class_token", "post_norm", "swiglu_scale_norms", "bcos"])
def test_sets_of_heads_are_taken_away_row_by_row(name: str) -> None:
    model = small_vit(name)
    vit, images = GatedViT(model), images_for(model)
    sets = [[4], [3, 8], []]
    with torch.no_grad():
        tokens = vit.stream(images)[1]  # no head of a set lies before block 1
        edits = vit.without(2, sets, tokens)
        assert set(edits) == {1, 2}
        found = vit.finish(tokens.repeat(3, 1, 1), 1, edits).unflatten(0, (3, 2))
        for logits, closed in zip(found, sets, strict=True):
            torch.testing.assert_close(logits, _by_hooks(model, images, closed))


def _by_hooks(model: Any, images: torch.Tensor, closed: list[int]) -> torch.Tensor:
    def hook(layer: int) -> Any:
        def close(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z = z.clone()
            z[:, :, [h % 3 for h in closed if h // 3 == layer]] = 0
            return z

        return (f"blocks.{layer}.attn.hook_z", close)

    hooked = HookedVisionModel(model)
    return hooked.run_with_hooks(images, fwd_hooks=[hook(layer) for layer in range(3)])


def test_a_gate_goes_from_reference_to_head() -> None:
    z, other = (noise_like(torch.empty(2, 6, 3, 8, dtype=torch.float64), seed) for seed in (0, 1))
    values = torch.tensor([[0.0, 1.0, 0.25]] * 2, dtype=torch.float64)
    found = Gate(values, reference=other)(z)
    torch.testing.assert_close(found[:, :, 0], other[:, :, 0])
    torch.testing.assert_close(found[:, :, 1], z[:, :, 1])
    torch.testing.assert_close(found[:, :, 2], 0.75 * other[:, :, 2] + 0.25 * z[:, :, 2])


def test_random_parts_are_a_partition() -> None:
    basis = rotated_heads(3, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(basis @ basis.T, torch.eye(24, dtype=torch.float64))
    z = noise_like(torch.empty(2, 6, 3, 8, dtype=torch.float64))
    eye = torch.eye(3, dtype=torch.float64)
    parts = [Gate(row, basis=basis)(z) for row in eye]
    torch.testing.assert_close(sum(parts), z)
    inner = sum((parts[0] * parts[1]).flatten(2).sum(-1).flatten())
    assert abs(float(inner)) < 1e-10  # parts are orthogonal
    plain = Gate(eye[1], basis=torch.eye(24, dtype=torch.float64))(z)
    torch.testing.assert_close(plain, Gate(eye[1])(z))


def test_costs_are_higher_when_worse() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1])
    assert target_cost("margin")(logits, labels).tolist() == [-1.0, 2.0]
    loss = target_cost("loss")(logits, labels)
    assert loss[0] < loss[1]
    torch.testing.assert_close(loss, -logits.log_softmax(1)[range(2), labels])


def test_what_has_no_heads_to_compare_is_refused() -> None:
    with pytest.raises(SpecError, match="ResNet has no attention heads"):
        GatedViT(small_cnn("resnet18"))
    with pytest.raises(SpecError, match="a single attention head"):
        GatedViT(small_vit("class_token", num_heads=1, depth=1))
    model = small_vit("class_token")
    model.blocks[1].attn.num_heads = 6
    with pytest.raises(SpecError, match=r"different numbers of heads \(3, 6\)"):
        GatedViT(model)


def test_a_model_that_does_more_than_its_blocks_is_refused() -> None:
    model = small_vit("class_token")
    forward = model.forward_features
    model.forward_features = lambda x, **options: 2 * forward(x, **options)
    with pytest.raises(SpecError, match="more than run its blocks"):
        GatedViT(model).check(images_for(model))


def test_frozen_gives_back_modes_and_gradients() -> None:
    model = small_vit("class_token").train()
    model.blocks[1].eval()
    model.head.weight.requires_grad_(False)
    with pytest.raises(KeyError), frozen(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert model.training and not model.blocks[1].training
    assert not model.head.weight.requires_grad and model.head.bias.requires_grad
