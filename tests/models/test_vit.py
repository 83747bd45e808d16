"""Vision transformers: registered with timm, complete explanations, twins alike but for layers."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import timm
import torch
from einops import rearrange
from timm.data import create_transform, resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models import vit
from polysem.models.bcos import BcosLinear, add_inverse, explanation_mode, logit_bias
from polysem.models.embed import sincos_positions

SIZES = ("micro", "tiny", "small", "base")
BCOS = [f"bcos_{kind}_micro_patch4_32" for kind in ("vit", "vitc")]
STANDARD = [f"{kind}_micro_patch4_gap_32" for kind in ("vit", "vitc")]


def made(name: str, **options: Any) -> Any:
    """Build a small model in float64, its norms and positions as after some training."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **{"depth": 2, **options}).double().eval()
    for key, parameter in model.named_parameters():
        if "norm" in key and key.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif key.endswith((".table", "pos_embed")):
            nn.init.normal_(parameter)
    return model


def images(size: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64)
    return x if channels == 3 else add_inverse(x)


def test_every_name_is_registered() -> None:
    for kind in ("vit", "vitc"):
        for size in SIZES:
            for patch, side in ((4, 32), (8, 64), (16, 224)):
                assert timm.is_model(f"bcos_{kind}_{size}_patch{patch}_{side}")
                if (kind, size, patch) != ("vit", "base", 16):
                    entry = timm.model_entrypoint(f"{kind}_{size}_patch{patch}_gap_{side}")
                    assert entry.__module__ == "polysem.models.vit"
    assert len(timm.list_models("bcos_vit*")) == 24
    assert vit.__name__ == timm.model_entrypoint("vit_base_patch16_relpos_gap_224").__module__


def test_timm_keeps_its_own_model() -> None:
    assert timm.model_entrypoint("vit_base_patch16_gap_224").__module__.startswith("timm.")


def test_entry_points_are_public_and_pickle() -> None:
    entry = timm.model_entrypoint("bcos_vit_micro_patch8_64")
    assert pickle.loads(pickle.dumps(entry)) is entry
    assert set(vit.__all__) <= set(dir(vit)) and "bcos_vit_micro_patch8_64" in vit.__all__


@pytest.mark.parametrize(
    ("size", "patch"),
    [("micro", (4, 32)), ("micro", (8, 64)), *((size, (16, 224)) for size in SIZES)],
)
@pytest.mark.parametrize("kind", ["vit", "vitc"])
def test_twins_differ_in_their_layers_only(kind: str, size: str, patch: tuple[int, int]) -> None:
    with torch.device("meta"):  # shapes without numbers
        ours = timm.create_model(f"bcos_{kind}_{size}_patch{patch[0]}_{patch[1]}")
        gap = "relpos_gap" if (kind, size, patch[0]) == ("vit", "base", 16) else "gap"
        twin = timm.create_model(f"{kind}_{size}_patch{patch[0]}_{gap}_{patch[1]}")
        width, depth, heads = {
            "micro": (128, 8, 4),
            "tiny": (192, 12, 3),
            "small": (384, 12, 6),
            "base": (768, 12, 12),
        }[size]
        for model in (ours, twin):
            assert model(torch.rand(2, model.in_chans, patch[1], patch[1])).shape == (2, 1000)
            assert (model.embed_dim, model.blocks[0].attn.num_heads) == (width, heads)
            assert len(model.blocks) == depth - (kind == "vitc")
            assert model.blocks[0].mlp.fc1.out_features == 4 * width
    weights = {
        key.replace("head.linear", "head"): value.shape for key, value in ours.named_parameters()
    }
    twins = {key: value.shape for key, value in twin.named_parameters() if "bias" not in key}
    twins |= {key: value.shape for key, value in twin.named_parameters() if "table" in key}
    assert weights.keys() == twins.keys()
    different = [key for key in weights if weights[key] != twins[key]]
    first = "patch_embed.proj." + ("stem.0.conv.weight" if kind == "vitc" else "linear.weight")
    assert different == [first] and weights[first].numel() == 2 * twins[first].numel()


def test_stems_are_those_of_the_official_networks_and_their_ends() -> None:
    def stem(size: str, patch: str) -> list[int]:
        with torch.device("meta"):
            model = timm.create_model(f"bcos_vitc_{size}_{patch}")
        return [stage.conv.out_channels for stage in model.patch_embed.proj.stem]

    assert stem("tiny", "patch16_224") == [24, 48, 96, 192]
    assert stem("small", "patch16_224") == [48, 96, 192, 384]
    assert stem("base", "patch16_224") == [64, 128, 128, 256, 256, 512]
    assert stem("base", "patch8_64") == [128, 128, 256, 256, 512]
    assert stem("base", "patch4_32") == [256, 256, 512]
    assert stem("micro", "patch8_64") == [32, 64, 128]
    assert stem("micro", "patch4_32") == [64, 128]


def test_a_micro_model_has_about_a_million_and_a_half_parameters() -> None:
    for name in ("bcos_vit_micro_patch8_64", "vitc_micro_patch8_gap_64"):
        model = timm.create_model(name, num_classes=8)
        assert 1.4e6 < sum(p.numel() for p in model.parameters()) < 1.7e6


@pytest.mark.parametrize(
    ("name", "size", "mean", "crop_pct"),
    [
        ("bcos_vit_micro_patch8_64", (6, 64, 64), 0.0, 1.0),
        ("vitc_micro_patch4_gap_32", (3, 32, 32), 0.485, 1.0),
        ("bcos_vitc_micro_patch16_224", (6, 224, 224), 0.0, 0.875),
    ],
)
def test_timm_knows_the_input(
    name: str, size: tuple[int, int, int], mean: float, crop_pct: float
) -> None:
    model = timm.create_model(name)
    config = resolve_model_data_config(model)
    assert (config["input_size"], config["mean"][0]) == (size, mean)
    assert config["std"][0] == (1.0 if size[0] == 6 else 0.229)
    assert (config["crop_pct"], config["interpolation"]) == (crop_pct, "bilinear")
    assert model.num_classes == 1000 and create_transform(**config)
    larger = timm.create_model(name, img_size=96)
    assert resolve_model_data_config(larger)["input_size"] == (size[0], 96, 96)


@pytest.mark.parametrize(
    "options",
    [{}, {"b": 1.5}, {"max_out": 2}, {"positions": "none"}],
    ids=str,
)
@pytest.mark.parametrize("name", BCOS)
def test_explanations_are_complete(name: str, options: dict[str, Any]) -> None:
    model, x = made(name, **options), images(channels=6).requires_grad_()
    outside = model(x)
    with explanation_mode(model):
        inside = model(x)
    torch.testing.assert_close(inside, outside, rtol=0, atol=1e-15)
    for image, label in ((0, 3), (1, 5)):
        (w,) = torch.autograd.grad(inside[image, label], x, retain_graph=True)
        explained = (w * x).sum() - (inside[image, label] - logit_bias(model))
        assert abs(explained.item()) <= 1e-10
        assert (inside[image, label] - logit_bias(model)).abs() > 1e-4  # there is something
        assert not w[1 - image].any()
    assert logit_bias(model) == -math.log(6)


@pytest.mark.parametrize("name", BCOS)
def test_added_positions_are_the_rest_of_the_logit(name: str) -> None:
    model, x = made(name, positions="sincos"), images(channels=6).requires_grad_()
    tokens: list[Tensor] = []
    handle = model.sincos.register_forward_hook(lambda _, __, output: tokens.append(output))
    with explanation_mode(model):
        logit = model(x)[1, 3]
    handle.remove()
    w, at_tokens = torch.autograd.grad(logit, (x, tokens[0]))
    positions = sincos_positions((8, 8), 128, device=x.device)
    from_positions = (at_tokens * positions).sum()
    rest = logit - logit_bias(model) - (w * x).sum()
    assert abs((rest - from_positions).item()) <= 1e-10
    assert abs(from_positions.item()) > 1e-3


@pytest.mark.parametrize("name", ["bcos_vit_micro_patch4_32", "vit_micro_patch4_gap_32"])
@pytest.mark.parametrize("positions", ["none", "attention", "sincos", "learn"])
def test_patches_may_be_permuted_only_without_positions(name: str, positions: str) -> None:
    model = made(name, positions=positions)
    x = images(channels=model.in_chans)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    patches = rearrange(x, "i c (y py) (x px) -> i c (y x) py px", py=4, px=4)[:, :, order]
    shuffled = rearrange(patches, "i c (y x) py px -> i c (y py) (x px)", y=8)
    gap = (model(shuffled) - model(x)).abs().max().item()
    assert gap < 1e-12 if positions == "none" else gap > 1e-4


@pytest.mark.parametrize("name", BCOS + STANDARD)
@pytest.mark.parametrize("positions", ["attention", "sincos", "learn"])
def test_images_of_other_sizes_are_taken(name: str, positions: str) -> None:
    model = made(name, positions=positions)
    for side in (16, 64):
        assert model(images(side, model.in_chans)).shape == (2, 7)


def test_a_constant_image_looks_the_same_at_any_size_without_positions() -> None:
    model = made("bcos_vit_micro_patch4_32", positions="none")
    x = images(channels=6)
    torch.testing.assert_close(model(x.tile(1, 1, 2, 2)), model(x))


def test_oblong_images_need_a_model_of_their_own() -> None:
    model = made("bcos_vit_micro_patch4_32", img_size=(16, 32))
    assert model.blocks[0].attn.position_bias.table.shape == (4, 7, 15)
    x = images(channels=6)
    assert model(x[:, :, :16]).shape == model(x).shape == (2, 7)
    for other in (x[:, :, :24], x[..., :16]):
        with pytest.raises(SpecError, match="attention positions"):
            model(other)
    square = made("bcos_vit_micro_patch4_32")
    mistaken = torch.cat([x, x], dim=3)[:, :, :16]  # as many patches as in training
    with pytest.raises(SpecError, match="trained on 8 × 8"):
        square(mistaken)


def test_the_standard_skeleton_is_timm_s_own() -> None:
    ours = made("vit_micro_patch4_gap_32", positions="learn")
    theirs = TimmVisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=128,
        depth=2,
        num_heads=4,
        num_classes=7,
        class_token=False,
        global_pool="avg",
        norm_layer=nn.LayerNorm,
    )
    state = ours.state_dict()
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = state.pop(f"patch_embed.proj.linear.{part}")
    state["patch_embed.proj.weight"] = rearrange(
        state["patch_embed.proj.weight"], "d (y x c) -> d c y x", y=4, x=4
    )
    theirs.load_state_dict(state)
    torch.testing.assert_close(theirs.double().eval()(images()), ours(images()))


@pytest.mark.parametrize("name", BCOS + STANDARD)
def test_models_pickle_and_copy(name: str) -> None:
    model = made(name)
    x = images(channels=model.in_chans)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other(x), model(x))
        other.reset_classifier(3)
        assert other(x).shape == (2, 3)


def test_a_new_head_is_of_the_same_kind() -> None:
    model = made("bcos_vit_micro_patch4_32", b=1.5)
    x, features = images(channels=6), []
    model.reset_classifier(11)
    assert isinstance(model.head.linear, BcosLinear) and model.head.linear.b == 1.5
    assert logit_bias(model) == pytest.approx(-math.log(10)) and model.num_classes == 11
    assert model.head.linear.weight.dtype == torch.float64
    handle = model.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    model(x)
    handle.remove()
    model.reset_classifier(0)
    assert torch.equal(model(x), features[0])
    standard = made("vit_micro_patch4_gap_32")
    standard.reset_classifier(3)
    assert type(standard.head) is nn.Linear


def test_timm_s_interfaces_work() -> None:
    model = made("bcos_vitc_micro_patch4_32")
    x = images(channels=6)
    assert model.no_weight_decay() == {
        "pos_embed",
        "blocks.0.attn.position_bias.table",
        "blocks.1.attn.position_bias.table",
    }
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert last.shape == (2, 128, 8, 8)
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(model.train()(x), model.eval()(x))
    getter = timm.create_model("bcos_vit_micro_patch4_32", features_only=True, depth=3)
    assert [f.shape[1:] for f in getter(x.float())][-1] == (128, 8, 8)


def test_rates_of_dropping_reach_timm() -> None:
    model = made(
        "bcos_vit_micro_patch4_32",
        positions="sincos",
        drop_rate=0.1,
        attn_drop_rate=0.2,
        proj_drop_rate=0.3,
        drop_path_rate=0.4,
        patch_drop_rate=0.5,
        pos_drop_rate=0.6,
    )
    block = model.blocks[1]
    assert (model.head_drop.p, block.attn.attn_drop.p, block.mlp.drop1.p) == (0.1, 0.2, 0.3)
    assert (block.drop_path2.drop_prob, model.pos_drop.p) == (pytest.approx(0.4), 0.6)
    assert model.train()(images(channels=6)).shape == (2, 7)


def test_learned_positions_are_initialised() -> None:
    model = timm.create_model("vit_micro_patch4_gap_32", positions="learn", depth=1)
    assert 0.01 < model.pos_embed.std() < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "sincoss"}, "did you mean 'sincos'"),
        ({"patch_drop_rate": 1.0}, "patch_drop_rate is 1.0; it may be one rate from 0"),
        ({"spatial_drop_rate": 1.5}, "spatial_drop_rate is 1.5; it may be 0 to below 1"),
        ({"spatial_drop_rate": 0.1, "proj_drop_rate": 0.1}, "not both"),
        ({"attention": "sofmax"}, "did you mean 'softmax'"),
        ({"img_size": 30}, "does not divide into patches"),
        ({"b": 0.9}, "at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        timm.create_model("bcos_vit_micro_patch4_32", **options)


def test_a_standard_model_takes_no_exponent() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'b'"):
        timm.create_model("vit_micro_patch4_gap_32", b=2)


@pytest.mark.parametrize("name", ["bcos_vit_micro_patch4_32", "vit_micro_patch4_gap_32"])
def test_models_learn_under_autocast(name: str) -> None:
    model = made(name).float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(channels=model.in_chans).float())
    logits.float().logsumexp(-1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


def test_importing_again_registers_nothing_twice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import polysem.models.vit  # noqa: F401
