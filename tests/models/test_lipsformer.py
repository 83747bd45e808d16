"""LipsFormer's blocks and first weights, and a whole transformer of its parts under hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from polysem.models.bcos import BcosConv2d, BcosLinear, add_inverse, explanation_mode, logit_bias
from polysem.models.checkpoint import save_checkpoint
from polysem.models.hooked import HookedVisionModel
from polysem.models.lipsformer import spectral_init_
from polysem.models.load import load_model
from polysem.models.norms import CenterNorm
from polysem.models.registry import evaluation_transform

TWINS = ("vit_micro_patch8_gap_64", "bcos_vit_micro_patch8_64")
SIZES: dict[str, Any] = {
    "img_size": (16, 24), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3,
    "mlp_ratio": 1.7, "num_classes": 5,
}  # fmt: skip
PARTS: dict[str, Any] = {
    "attention": {"kind": "cosine", "eps": 0.1}, "center_norm": True, "post_norm": True,
    "weighted_residual": True, "spectral_init": True,
}  # fmt: skip


def built(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SIZES, **PARTS, **options}).double().eval()


def lived_in(model: Any) -> Any:
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(0.2 * draw(*parameter.shape, seed=seed))
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def images(model: Any) -> Tensor:
    x = draw(2, 3, 16, 24).sigmoid()
    return add_inverse(x) if model.in_chans == 6 else x


@pytest.mark.parametrize("name", TWINS)
def test_the_options_give_the_parts(name: str) -> None:
    model = built(name)
    norms = [*(b.norm1 for b in model.blocks), *(b.norm2 for b in model.blocks), model.fc_norm]
    assert all(isinstance(norm, CenterNorm) for norm in norms)
    assert all((norm.bias is None) == name.startswith("bcos") for norm in norms)
    for block in model.blocks:
        assert torch.equal(block.ls1.gamma, torch.full((24,), 1 / 3).double())
        assert block.attn.mixer.eps == 0.1
    own = built(name, init_values=0.7)
    assert torch.equal(own.blocks[1].ls2.gamma, torch.full((24,), 0.7).double())


@pytest.mark.parametrize("name", TWINS)
def test_the_stream_follows_the_formula(name: str) -> None:
    model = lived_in(built(name))
    _, cache = HookedVisionModel(model).run_with_cache(images(model))
    for layer, block in enumerate(model.blocks):
        prefix = f"blocks.{layer}"
        before = cache[f"{prefix}.hook_resid_pre"]
        attended = before + block.ls1.gamma * block.attn(before)
        mid = block.norm1(attended)
        after = block.norm2(mid + block.ls2.gamma * block.mlp(mid))
        close = torch.testing.assert_close
        close(before + cache[f"{prefix}.hook_attn_out"], attended)
        close(cache[f"{prefix}.hook_resid_mid"], mid)
        close(block.norm2(mid + cache[f"{prefix}.hook_mlp_out"]), after)
        close(cache[f"{prefix}.hook_resid_post"], after)
        v, pattern = cache[f"{prefix}.attn.hook_v"], cache[f"{prefix}.attn.hook_pattern"]
        unit = v / (v.square().sum(-1, keepdim=True) + 0.1).sqrt()
        z = torch.einsum("ihqk,ikhd->iqhd", pattern, unit)
        close(cache[f"{prefix}.attn.hook_z"], z)
        assert pattern.sum(-1).allclose(torch.ones(1, dtype=torch.float64))


def test_an_edit_of_the_middle_of_the_stream_reaches_both_its_readers() -> None:
    model = lived_in(built(TWINS[0]))
    more = draw(2, 6, 24, seed=9)
    hooked = HookedVisionModel(model)
    edit = ("blocks.1.hook_resid_mid", lambda value, hook: value + more)
    found = hooked.run_with_hooks(images(model), fwd_hooks=[edit])
    block = model.blocks[1]
    before: Tensor = hooked.run_with_cache(images(model))[1]["blocks.1.hook_resid_mid"] + more
    after = block.norm2(before + block.ls2.gamma * block.mlp(before))
    expected = model.forward_head(model.norm(model.blocks[2](after)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("post_norm", [True, False])
def test_explanations_of_the_b_cos_twin_are_complete(post_norm: bool) -> None:
    model = lived_in(built(TWINS[1], post_norm=post_norm))
    x = images(model).requires_grad_()
    with explanation_mode(model):
        logit = model(x)[1, 3]
        (row,) = torch.autograd.grad(logit, x)
    total = (row * x).sum() + logit_bias(model)
    torch.testing.assert_close(total, logit, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TWINS)
def test_checkpoints_keep_all_of_it(name: str, tmp_path: Path) -> None:
    model = lived_in(built(name)).float()
    path, args = tmp_path / "a.safetensors", {**SIZES, "img_size": [16, 24], **PARTS}
    save_checkpoint(path, name, args, model.state_dict(), transform=evaluation_transform(model))
    loaded: Any = load_model(path).model
    x = images(model).float()
    assert torch.equal(loaded(x), model(x))
    assert repr(loaded) == repr(model)


@pytest.mark.parametrize("name", [*TWINS, "bcos_vitc_micro_patch8_64"])
def test_weights_start_with_spectral_norm_1(name: str) -> None:
    model = built(name, stem=(8, 16, 24)) if "vitc" in name else built(name)
    for _ in range(2):
        for key, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, BcosLinear, BcosConv2d)):
                for part in module.weight.chunk(3 if key.endswith("qkv") else 1):
                    norm = torch.linalg.matrix_norm(part.flatten(1), ord=2)
                    assert norm.item() == pytest.approx(1, abs=1e-5), key
                assert getattr(module, "bias", None) is None or not module.bias.any()
        before = model.blocks[0].mlp.fc1.weight.clone()
        model.init_weights()
        assert not torch.equal(model.blocks[0].mlp.fc1.weight, before)


def test_plain_modules_too() -> None:
    conv = nn.Conv2d(3, 5, (2, 3))
    spectral_init_(nn.Sequential(conv, nn.BatchNorm2d(5)))
    norm = torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)
    assert norm.item() == pytest.approx(1, abs=1e-5)
