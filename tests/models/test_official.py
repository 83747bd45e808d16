"""Names of official parameters become ours, and what is no official network is refused.

That the networks are then the same functions is shown in tests/peers/test_bcos_package.py.
"""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from polysem.errors import CheckpointError, SpecError
from polysem.models.official import OFFICIAL_VITS, official_vit, official_vit_key

BCOS = {
    "0.to_patch_embedding.conv_stem.0.linear.weight": "patch_embed.proj.stem.0.conv.weight",
    "0.to_patch_embedding.conv_stem.7.weight": "patch_embed.proj.stem.2.norm.weight",
    "0.to_patch_embedding.linear.linear.weight": "patch_embed.proj.linear.weight",
    "0.transformer.encoder_11.attn.norm.weight": "blocks.11.norm1.weight",
    "0.transformer.encoder_0.attn.to_qkv.weight": "blocks.0.attn.qkv.weight",
    "0.transformer.encoder_2.attn.to_out.linear.weight": "blocks.2.attn.proj.weight",
    "0.transformer.encoder_3.ff.net.norm.weight": "blocks.3.norm2.weight",
    "0.transformer.encoder_3.ff.net.linear1.linear.weight": "blocks.3.mlp.fc1.weight",
    "0.transformer.encoder_3.ff.net.linear2.linear.weight": "blocks.3.mlp.fc2.weight",
    "0.linear_head.norm.weight": "fc_norm.weight",
    "0.linear_head.linear.linear.weight": "head.linear.weight",
}
STANDARD = {
    "to_patch_embedding.conv_stem.3.bias": "patch_embed.proj.stem.1.conv.bias",
    "to_patch_embedding.linear.bias": "patch_embed.proj.linear.bias",
    "transformer.encoder_2.attn.to_out.weight": "blocks.2.attn.proj.weight",
    "transformer.encoder_3.ff.net.linear1.bias": "blocks.3.mlp.fc1.bias",
    "linear_head.linear.bias": "head.bias",
}


@pytest.mark.parametrize(("official", "ours"), [*BCOS.items(), *STANDARD.items()])
def test_names_are_translated_with_and_without_the_container(official: str, ours: str) -> None:
    assert official_vit_key(official) == ours
    assert official_vit_key(official.removeprefix("0.")) == ours


@pytest.mark.parametrize(
    "key",
    [
        "blocks.0.attn.qkv.weight",
        "0.to_patch_embedding.conv_stem.2.weight",
        "0.transformer.encoder_0.attn.to_qkv.weight.x",
        "1.linear_head.norm.weight",
    ],
)
def test_other_parameters_are_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match="no official B-cos vision transformer has"):
        official_vit_key(key)


def official(kind: str, max_out: int = 1) -> dict[str, Tensor]:
    """An official tiny network of one block, without its stem."""
    layer, prefix = (".linear", "0.") if kind == "bcos" else ("", "")
    encoder, inner = f"{prefix}transformer.encoder_0.", f"{layer}.weight"
    return {
        f"{encoder}attn.to_qkv.weight": torch.rand(576, 192),
        f"{encoder}attn.to_out{inner}": torch.rand(192 * max_out, 192),
        f"{prefix}linear_head.linear{inner}": torch.rand(10 * max_out, 192),
    }


def test_classes_and_maxout_are_read_off_the_weights() -> None:
    arch, model_args, state_dict = official_vit("simple_vit_ti_patch16_224", official("bcos", 3))
    assert arch == "bcos_vit_tiny_patch16_224"
    assert model_args == {"num_classes": 10, "positions": "sincos", "max_out": 3}
    assert set(state_dict) == {
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "head.linear.weight",
    }


def test_standard_attention_gets_biases_of_zero() -> None:
    arch, model_args, state_dict = official_vit("standard_vitc_ti_patch1_14", official("standard"))
    assert arch == "vitc_tiny_patch16_gap_224"
    assert model_args == {"num_classes": 10, "positions": "sincos"}
    for name, size in (("qkv", 576), ("proj", 192)):
        assert torch.equal(state_dict[f"blocks.0.attn.{name}.bias"], torch.zeros(size))


@pytest.mark.parametrize("kind", ["bcos", "standard"])
@pytest.mark.parametrize("name", OFFICIAL_VITS)
def test_every_official_network_has_an_architecture_here(kind: str, name: str) -> None:
    arch, model_args, _ = official_vit(f"{kind}_{name}", official(kind))
    assert timm.is_model(arch)
    with torch.device("meta"):
        model = timm.create_model(arch, **model_args)
    width, depth = {"ti": (192, 12), "s": (384, 12), "b": (768, 12), "l": (1024, 14)}[
        name.split("_")[-3]
    ]
    assert model.embed_dim == width
    assert len(model.blocks) == depth - name.startswith("vitc")
    assert model.in_chans == (6 if kind == "bcos" else 3)


def test_unknown_names_are_refused_with_near_ones() -> None:
    with pytest.raises(SpecError, match="did you mean 'vitc_ti_patch1_14'"):
        official_vit("bcos_vitc_t_patch1_14", official("bcos"))


def test_weights_of_another_kind_are_refused() -> None:
    with pytest.raises(CheckpointError, match="says standard, but the weights are bcos"):
        official_vit("standard_simple_vit_ti_patch16_224", official("bcos"))
    with pytest.raises(CheckpointError, match="no weights of an official"):
        official_vit("simple_vit_ti_patch16_224", {"0.linear_head.norm.weight": torch.rand(3)})
