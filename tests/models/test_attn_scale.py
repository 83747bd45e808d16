"""AttnScale and FeatScale against the matrices of the paper."""

from __future__ import annotations

import pytest
import torch
from mixing import close, drawn, made, mixed, slow_softmax

from polysem.models.attn_scale import AttnScale, FeatScale
from polysem.models.mixers import Softmax

OMEGA = torch.tensor([0.7, -0.4], dtype=torch.float64)


def scaled(omega: torch.Tensor = OMEGA) -> AttnScale:
    mixer: AttnScale = made(AttnScale)
    mixer.strength.data.copy_(omega)
    return mixer


@pytest.mark.parametrize("biased", [False, True])
def test_the_pattern_is_that_of_the_paper(biased: bool) -> None:
    bias = torch.randn(1, 2, 6, 6, dtype=torch.float64) if biased else None
    mixer, (q, k, v) = scaled(), drawn()
    full, even = slow_softmax(bias), torch.full((6, 6), 1 / 6, dtype=torch.float64)
    for head in range(2):
        full[:, head] = even + (1 + OMEGA[head]) * (full[:, head] - even)
    pattern = mixer.pattern(mixer.scores(q, k, bias))
    close(pattern, full)
    close(pattern.sum(-1), torch.ones(5, 2, 6).double())
    close(mixed(mixer, bias), full @ v)  # in closed form
    close(mixed(mixer, bias, fused=False), full @ v)


def test_a_strength_of_zero_is_plain_attention_bit_for_bit() -> None:
    for fused in (True, False):
        assert torch.equal(mixed(made(AttnScale), fused=fused), mixed(made(Softmax), fused=fused))


def test_a_strength_of_minus_one_is_the_mean_of_the_tokens() -> None:
    _, _, v = drawn()
    mean = v.mean(2, keepdim=True).expand_as(v)
    close(mixed(scaled(-torch.ones(2).double())), mean)


def test_masked_tokens_do_not_count_in_the_mean() -> None:
    _, _, v = drawn()
    mask = torch.zeros(6, 6, dtype=torch.float64)
    mask[:, 4:] = -torch.inf
    mixer = scaled(-torch.ones(2).double())
    close(mixed(mixer, mask, masked=True), v[:, :, :4].mean(2, keepdim=True).expand_as(v))
    causal = torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)
    running = v.cumsum(2) / torch.arange(1, 7)[:, None]
    close(mixed(mixer, causal, masked=True), running)


def test_attention_stays_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = scaled()
    monkeypatch.setattr(mixer, "scores", None)
    assert mixed(mixer).shape == (5, 2, 6, 4)


def test_features_are_scaled_as_in_the_paper() -> None:
    torch.manual_seed(0)
    scale, x = FeatScale(3).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    assert torch.equal(scale(x), x)
    torch.nn.init.normal_(scale.low)
    torch.nn.init.normal_(scale.high)
    expected = torch.empty_like(x)
    for image in range(2):
        for feature in range(3):
            column = x[image, :, feature]
            mean = sum(column.tolist()) / 5
            low, high = scale.low[feature].item(), scale.high[feature].item()
            expected[image, :, feature] = (1 + low) * mean + (1 + high) * (column - mean)
    close(scale(x).detach(), expected)
    torch.autograd.gradcheck(scale, x.requires_grad_())


def test_features_without_mean_and_scaled_as_a_whole() -> None:
    scale, x = FeatScale(3).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    torch.nn.init.constant_(scale.low, -1.0)
    close(scale(x).mean(1).detach(), torch.zeros(2, 3).double())
    for parameter in scale.parameters():
        torch.nn.init.constant_(parameter, 0.3)
    close(scale(x).detach(), 1.3 * x)
    scale.reset_parameters()
    assert torch.equal(scale(x), x)
