"""Laws of every way of mixing tokens, alone, in both kinds of layers, and under hooks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from mixing import NO_DROP, close, drawn, made, mixed, slow_softmax
from torch import Tensor, nn

from polysem.models.attention import BcosAttention, PositionAttention, attention_layer
from polysem.models.bcos import explanation_mode, logit_bias
from polysem.models.checkpoint import save_checkpoint
from polysem.models.hooked import HookedVisionModel
from polysem.models.kinds import MIXERS, choose_mixer
from polysem.models.load import load_model
from polysem.models.mixers import Softmax
from polysem.models.registry import evaluation_transform
from polysem.models.scores import pattern_logits

TWINS = ("vit_micro_patch4_gap_32", "bcos_vit_micro_patch4_32")
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {"kind": "softmax"},
    "sata": {"kind": "sata", "threshold": 0.3},
    "attn_scale": {"kind": "attn_scale"},
    "manhattan": {"kind": "manhattan", "local": True},
    "decomposed": {"kind": "manhattan", "decomposed": True, "local": True},
    "cosine": {"kind": "cosine", "eps": 0.1, "nu": 1.5},
    "cosine_code": {"kind": "cosine", "eps": 1e-24, "normalize_values": False},
}


def test_every_kind_is_tested() -> None:
    assert {options["kind"] for options in KINDS.values()} >= MIXERS.keys()


def moved(model: nn.Module) -> nn.Module:
    """Move what starts at a neutral value, as after some training."""
    for key, parameter in model.named_parameters():
        if parameter.ndim < 2 or "table" in key:
            nn.init.uniform_(parameter, 0.3, 0.9)
    return model


def mixer(kind: str) -> Any:
    mixer_type, options = choose_mixer(KINDS[kind])
    return moved(made(mixer_type, **options))


def vit(name: str, kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    positions = "none" if kind == "decomposed" else "attention"
    more = {"depth": 2, "num_classes": 5, "img_size": (8, 12), "positions": positions, **options}
    return moved(timm.create_model(name, attention=KINDS[kind], **more)).double().eval()


def images(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, model.in_chans, 8, 12, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_what_heads_write_is_read_from_the_pattern(kind: str) -> None:
    mix, (q, k, v) = mixer(kind), drawn()
    bias = mix.bias(6)
    pattern = mix.pattern(mix.scores(q, k, bias))
    assert pattern.shape == (5, 2, 6, 6)
    for fused in (True, False):
        close(mixed(mix, bias, fused=fused), mix.read(pattern, v))
    if mix.is_softmax:
        close(mix.scores(q, k, bias).softmax(-1), pattern)
        close(pattern.sum(-1), torch.ones(5, 2, 6).double())


def test_softmax_is_attention() -> None:
    mix, (_, _, v) = made(Softmax), drawn()
    bias = torch.randn(2, 6, 6, dtype=torch.float64)
    close(mixed(mix, bias[None]), slow_softmax(bias) @ v)
    assert mix.bias(6) is None and not mix.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_pattern(kind: str) -> None:
    mix = mixer(kind)
    bias = mix.bias(6)
    tensors = [t.requires_grad_() for t in drawn()]
    wanted = [*tensors, *mix.parameters()]
    close_to = torch.randn(5, 2, 6, 4, dtype=torch.float64)
    grads = [
        torch.autograd.grad(
            (mix(*tensors, bias, drop=NO_DROP, fused=fused) * close_to).sum(), wanted
        )
        for fused in (True, False)
    ]
    for one, other in zip(*grads, strict=True):
        close(one, other)
        assert one.abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["sata", "attn_scale", "decomposed"])  # the rest draws in torch
def test_dropped_weights_are_those_of_the_pattern(kind: str) -> None:
    mix, (q, k, v) = mixer(kind), drawn()
    drop = nn.Dropout(0.5).train()
    bias = mix.bias(6)
    torch.manual_seed(3)
    z = mix(q, k, v, bias, drop=drop, fused=True)
    torch.manual_seed(3)
    pattern = drop(mix.pattern(mix.scores(q, k, bias)))
    close(z, mix.read(pattern, v))
    assert torch.equal(mix(q, k, v, bias, drop=drop.eval(), fused=True), mixed(mix, bias))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"decomposed"}))  # takes no masks
def test_masked_keys_are_not_read(kind: str) -> None:
    mixer_type, options = choose_mixer(KINDS[kind])
    options.pop("local", None)  # the convolution reads what the mask hides
    options["grid"] = (2, 3)
    make = attention_layer(
        PositionAttention,
        grid=(2, 3),
        mixer_type=mixer_type,
        mixer_options=tuple(options.items()),
    )
    layer = make(8, num_heads=2)
    layer = moved(layer).double()
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    other = x.clone()
    other[:, 4] += 1
    keep = torch.ones(6, 6, dtype=torch.bool)
    keep[:, 4] = False
    for mask in (keep, torch.zeros(6, 6).double().masked_fill(~keep, -torch.inf)):
        a, b = layer(x, attn_mask=mask), layer(other, attn_mask=mask)
        rest = [0, 1, 2, 3, 5]
        close(a[:, rest], b[:, rest])
        layer.fused_attn = not layer.fused_attn
        close(layer(x, attn_mask=mask), a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TWINS)
def test_models_take_it_pickle_and_copy(name: str, kind: str) -> None:
    model = vit(name, kind)
    x = images(model)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other(x), model(x))
    if kind != "softmax":
        plain = vit(name, "softmax", positions=model.positions)
        assert (plain(x) - model(x)).abs().max() > 1e-6
    timm.create_model(name, attention=KINDS[kind]["kind"], depth=1, positions="none")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feat_scale", [False, True])
def test_explanations_stay_complete(kind: str, feat_scale: bool) -> None:
    model = vit(TWINS[1], kind, feat_scale=feat_scale)
    x = images(model).requires_grad_()
    with explanation_mode(model):
        logit = model(x)[1, 3]
    assert torch.equal(logit, model(x)[1, 3])
    (w,) = torch.autograd.grad(logit, x)
    assert abs(((w * x).sum() - logit + logit_bias(model)).item()) <= 1e-10
    assert abs((logit - logit_bias(model)).item()) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TWINS)
def test_hooks_show_what_the_layer_does(name: str, kind: str) -> None:
    model = vit(name, kind)
    hooked, x = HookedVisionModel(model), images(model)
    attn, prefix = model.blocks[1].attn, "blocks.1.attn"
    logits, cache = hooked.run_with_cache(x)
    torch.testing.assert_close(logits, model(x), rtol=0, atol=0)
    q, k, v, pattern, z, scores = (
        cache[f"{prefix}.hook_{site}"] for site in ("q", "k", "v", "pattern", "z", "attn_scores")
    )
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    close(scores, attn.mixer.scores(q, k, attn.logit_bias(6)))
    close(pattern, attn.mixer.pattern(scores))
    close(z, attn.mixer.read(pattern, v).transpose(1, 2))
    close(pattern_logits(attn, scores).softmax(-1), pattern.relu() / pattern.relu().sum(-1, True))

    def half(value: Tensor, hook: Any) -> Tensor:
        return value * 0.5

    edited = []
    hooked.run_with_hooks(
        x,
        fwd_hooks=[
            (f"{prefix}.hook_pattern", half),
            (f"{prefix}.hook_z", lambda value, hook: edited.append(value)),
        ],
    )
    close(edited[0], attn.mixer.read(pattern * 0.5, v).transpose(1, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TWINS)
def test_checkpoints_say_which_kind_it_is(name: str, kind: str, tmp_path: Any) -> None:
    options = {
        "attention": KINDS[kind],
        "positions": "none",
        "feat_scale": True,
        "drop_head": "half",
        "spatial_drop_rate": 0.1,
        "depth": 1,
        "num_classes": 5,
    }
    model = moved(timm.create_model(name, **options)).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, name, options, model.state_dict(), transform=evaluation_transform(model))
    loaded = load_model(path).model
    x = torch.rand(2, model.in_chans, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert type(loaded.blocks[0].attn.mixer) is type(model.blocks[0].attn.mixer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TWINS)
def test_they_learn_under_autocast(name: str, kind: str) -> None:
    model = vit(name, kind, feat_scale=True, drop_head=0.2).float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(model).float())
    logits.float().logsumexp(-1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_other_sizes_are_taken(kind: str) -> None:
    model = vit(TWINS[1], kind, img_size=12)
    for side in (12, 16, 8):
        x = torch.rand(2, 6, side, side, dtype=torch.float64)
        assert model(x).shape == (2, 5)


@pytest.mark.parametrize("kind", ["softmax", "sata", "attn_scale"])  # the rest takes seconds
def test_a_compiler_takes_it_in_one_piece(kind: str) -> None:
    mix, (q, k, v) = mixer(kind), drawn()
    torch.compiler.reset()
    compiled = torch.compile(mix, backend="eager", fullgraph=True)
    close(compiled(q, k, v, mix.bias(6), drop=NO_DROP, fused=True), mixed(mix, mix.bias(6)))


@pytest.mark.parametrize("base", [PositionAttention, BcosAttention])
def test_two_layers_of_one_kind_share_their_class(base: type[PositionAttention]) -> None:
    options = {"mixer_type": MIXERS["sata"], "mixer_options": (("threshold", 0.2),)}
    one, other = (attention_layer(base, **options) for _ in range(2))
    assert one is other and one.mixer_type is MIXERS["sata"]
    assert base.mixer_type is Softmax
