"""Positions in attention against slow loops, and the B-cos twin's constant pattern."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from polysem.errors import SpecError
from polysem.models.attention import (
    BcosAttention,
    PositionAttention,
    attention_layer,
)
from polysem.models.bcos import BcosLinear, explanation_mode

GRID = (2, 3)
MASKS = {
    "none": None,
    "keep": torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) > 0.3,
    "add": torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(2)).double(),
}
MASKS["keep"].fill_diagonal_(True)


def made(
    base: type[PositionAttention], *, grid: tuple[int, int] | None = GRID, **options: float
) -> PositionAttention:
    torch.manual_seed(0)
    layer = attention_layer(base, grid=grid, **options)(8, num_heads=2).double().eval()
    if layer.position_bias is not None:
        torch.nn.init.normal_(layer.position_bias.table)
    return layer


def tokens(n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, n, 8, generator=generator, dtype=torch.float64)


def slow_pattern(layer: PositionAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q·kᵀ/√d_head + bias), from the queries and keys of every image and head."""
    q, k, _ = layer.qkv(x).unflatten(-1, (3, layer.num_heads, layer.head_dim)).unbind(2)
    logits = torch.einsum("iqhd,ikhd->ihqk", q, k) / math.sqrt(layer.head_dim)
    bias = layer.attention_bias(x.shape[1])
    logits = logits if bias is None else logits + bias
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -math.inf)
    elif mask is not None:
        logits = logits + mask
    return logits.softmax(-1)


@pytest.mark.parametrize("base", [PositionAttention, BcosAttention])
@pytest.mark.parametrize("grid", [None, GRID])
@pytest.mark.parametrize("mask", MASKS)
def test_fused_attention_equals_unfused_and_the_pattern_is_recomputable(
    base: type[PositionAttention], grid: tuple[int, int] | None, mask: str
) -> None:
    layer, x = made(base, grid=grid), tokens()
    heads = []
    handle = layer.proj.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
    assert layer.fused_attn
    fused = layer(x, attn_mask=MASKS[mask])
    layer.fused_attn = False
    unfused = layer(x, attn_mask=MASKS[mask])
    handle.remove()
    torch.testing.assert_close(fused, unfused)
    v = layer.qkv(x).unflatten(-1, (3, 2, 4)).unbind(2)[2]
    z = torch.einsum("ihqk,ikhd->iqhd", slow_pattern(layer, x, MASKS[mask]), v)
    torch.testing.assert_close(heads[0], z.flatten(2))


def test_positions_know_no_order_of_time() -> None:
    with pytest.raises(SpecError, match="not causal"):
        made(PositionAttention)(tokens(), is_causal=True)
    assert made(PositionAttention, grid=None)(tokens(), is_causal=True).shape == (5, 6, 8)


def test_without_positions_tokens_may_be_permuted() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    layer, x = made(BcosAttention, grid=None), tokens()
    assert layer.attention_bias(6) is None
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    placed = made(BcosAttention)
    assert (placed(x[:, order]) - placed(x)[:, order]).abs().max() > 1e-3


def test_b_cos_attention_is_complete_with_a_constant_pattern() -> None:
    layer, x = made(BcosAttention), tokens().requires_grad_()
    outside = layer(x)
    with explanation_mode(layer):
        inside = layer(x)
    assert torch.equal(inside, outside)
    (row,) = torch.autograd.grad(inside[1, 2, 3], x, retain_graph=True)
    torch.testing.assert_close((row * x).sum(), inside[1, 2, 3])

    with torch.no_grad():  # the row of W(x), from the pattern and the cosine of the output
        pattern = slow_pattern(layer, x, None)[1, :, 2]  # [head, key]
        _, _, value = layer.qkv.weight.unflatten(0, (3, 2, 4))  # [head, d_head, d_model]
        z = torch.einsum("hk,hdm,km->hd", pattern, value, x[1]).flatten()
        unit = layer.proj.unit_weight()[3]
        factor = (unit @ z / z.norm()).abs()
        expected = torch.einsum("hd,hk,hdm->km", factor * unit.view(2, 4), pattern, value)
    torch.testing.assert_close(row[1], expected)


@pytest.mark.parametrize(("b", "max_out"), [(1.5, 1), (2, 3)])
def test_options_reach_the_output_projection(b: float, max_out: int) -> None:
    layer = made(BcosAttention, b=b, max_out=max_out)
    assert isinstance(layer.proj, BcosLinear)
    assert (layer.proj.b, layer.proj.max_out) == (b, max_out)
    assert layer.qkv.bias is None and BcosAttention.b == 2 and BcosAttention.grid is None


def test_biases_are_refused() -> None:
    for name in ("qkv_bias", "proj_bias"):
        with pytest.raises(SpecError, match="no biases"):
            BcosAttention(8, 2, **{name: True})


def test_normalised_queries_are_held_constant_too() -> None:
    torch.manual_seed(0)
    layer = BcosAttention(8, 2, qk_norm=True, norm_layer=torch.nn.LayerNorm).double()
    x = tokens().requires_grad_()
    with explanation_mode(layer):
        y = layer(x)[1, 2, 3]
    (row,) = torch.autograd.grad(y, x)
    torch.testing.assert_close((row * x).sum(), y)


@pytest.mark.parametrize("base", [PositionAttention, BcosAttention])
def test_layers_pickle_and_copy(base: type[PositionAttention]) -> None:
    layer, x = made(base), tokens()
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(other) is type(layer) and type(other).__name__ == base.__name__
        assert torch.equal(other(x), layer(x))
    plain = base(8, 2).double()
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), plain(x))
