"""A Hugging Face ViT here and through TransformerLens's own bridge: same sites, same values.

Shared, with the same name and meaning: the residual stream, what is added to it, q, k, v, z,
pattern, and the neurons before and after their activation. The bridge means something else by
four names, because it hooks the modules of transformers; the tests say how they are related.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polysem.models.hooked import HookedVisionModel
from polysem.models.load import load_model

SHARED = {
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out",
    "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "attn.hook_pattern",
    "mlp.hook_pre", "mlp.hook_post",
}  # fmt: skip

DIFFERENT = {
    # here the patches alone, as TransformerLens does for the tokens of text; there class token
    # and positions are in
    "hook_embed",
    # there a head's pattern once more: transformers keeps no logits
    "attn.hook_attn_scores",
    # there before the norm's weight and bias
    "ln1.hook_normalized", "ln2.hook_normalized", "ln_final.hook_normalized",
    # unknown there; it is what the bridge's unembed reads
    "hook_pooled",
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, HookedVisionModel]]:
    """Return the bridge of a small random ViT, and the wrapper of the same saved and loaded."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40,
        image_size=(16, 24), patch_size=8, num_labels=5,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("vit")
    model.save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=model, device="cpu")
    yield bridge, HookedVisionModel(load_model(Path(folder)).model)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def runs(pair: tuple[Any, HookedVisionModel], images: Tensor) -> Iterator[Any]:
    with torch.inference_mode():
        yield [model.run_with_cache(images) for model in pair]


def assert_close(first: Tensor, second: Tensor, what: str = "") -> None:
    assert first.shape == second.shape, what
    assert (first - second).abs().max() <= 1e-5, what


def test_logits_and_all_shared_sites_are_equal(runs: Any) -> None:
    (their_logits, theirs), (our_logits, ours) = runs
    assert_close(their_logits, our_logits)
    shared = [f"blocks.{layer}.{part}" for layer in range(3) for part in SHARED]
    different = [site for site in ours if site not in shared]
    assert {site.split(".", 2)[-1] if "blocks" in site else site for site in different} == DIFFERENT
    for site in shared:
        assert_close(theirs[site], ours[site], site)


def test_sites_that_differ_are_related_as_said(pair: Any, runs: Any) -> None:
    (_, theirs), (_, ours) = runs
    model = pair[1].model
    assert_close(theirs["hook_embed"], ours["blocks.0.hook_resid_pre"])
    assert_close(theirs["hook_embed"][:, 1:], ours["hook_embed"] + model.pos_embed[:, 1:])
    for layer, block in enumerate(model.blocks):
        scores = f"blocks.{layer}.attn.hook_attn_scores"
        assert_close(theirs[scores], ours[scores].softmax(-1))
        for ln, norm in (("ln1", block.norm1), ("ln2", block.norm2)):
            site = f"blocks.{layer}.{ln}"
            normalized = theirs[f"{site}.hook_normalized"]
            assert_close(normalized * norm.weight + norm.bias, ours[f"{site}.hook_normalized"])
            assert_close(theirs[f"{site}.hook_out"], ours[f"{site}.hook_normalized"])
    assert_close(theirs["ln_final.hook_out"], ours["ln_final.hook_normalized"])
    assert_close(theirs["unembed.hook_in"], ours["hook_pooled"])


@pytest.mark.parametrize(
    "site",
    [
        "hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "attn.hook_q",
        "attn.hook_k", "attn.hook_v", "attn.hook_z", "mlp.hook_pre", "mlp.hook_post",
    ],
)  # fmt: skip
def test_the_same_edit_changes_the_output_alike(
    pair: tuple[Any, HookedVisionModel], runs: Any, images: Tensor, site: str
) -> None:
    def edit(value: Tensor, hook: Any) -> Tensor:
        return value * torch.linspace(0.2, 1.4, value.shape[-1])

    hooks = [(f"blocks.1.{site}", edit)]
    with torch.inference_mode():
        theirs, ours = (model.run_with_hooks(images, fwd_hooks=hooks) for model in pair)
    assert_close(theirs, ours)
    assert (ours - runs[1][0]).abs().max() > 1e-3
