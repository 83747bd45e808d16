"""Scaled cosine attention against a loop over every token, and what the paper promises of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixing import SHAPE, close, drawn, made, mixed
from torch import Tensor

from polysem.errors import SpecError
from polysem.models.bcos import explanation_mode
from polysem.models.cosine import Cosine


def slow_unit(row: list[float], eps: float) -> list[float]:
    length = math.sqrt(sum(x * x for x in row) + eps)
    return [x / length for x in row]


def slow_head(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, tau: float, nu: float, eps: float
) -> Tensor:
    """ν softmax(τ q̂ k̂ᵀ + bias) v̂ of one head of one image [token, d_head], as the paper has it."""
    qs, ks, vs = ([slow_unit(row, eps) for row in u.tolist()] for u in (q, k, v))
    out = []
    for i, query in enumerate(qs):
        logits = [
            tau * sum(a * b for a, b in zip(query, key, strict=True)) + bias[i, j].item()
            for j, key in enumerate(ks)
        ]
        total = sum(math.exp(logit) for logit in logits)
        weights = [math.exp(logit) / total for logit in logits]
        out.append(
            [
                nu * sum(w * value[d] for w, value in zip(weights, vs, strict=True))
                for d in range(len(vs[0]))
            ]
        )
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("fused", [True, False])
def test_it_equals_the_formula(fused: bool) -> None:
    numbers = {"tau": 7.0, "nu": 1.5, "eps": 0.3}
    mixer, (q, k, v) = made(Cosine, **numbers), drawn()
    bias = drawn(3)[0][0, :, :, :1] + drawn(4)[0][0, :, :1, :1]  # [head, query, 1], broadcasts
    bias = bias.expand(SHAPE[1], 6, 6)
    z = mixed(mixer, bias, fused=fused)
    for image in range(SHAPE[0]):
        for head in range(SHAPE[1]):
            rows = (u[image, head] for u in (q, k, v))
            close(z[image, head], slow_head(*rows, bias[head], **numbers))


def test_the_form_of_the_code_normalises_queries_and_keys_alone() -> None:
    mixer, (q, k, v) = made(Cosine, normalize_values=False, eps=1e-24), drawn()
    q, k = (torch.nn.functional.normalize(u, dim=-1) for u in (q, k))
    close(mixed(mixer), (10 * q @ k.transpose(-2, -1)).softmax(-1) @ v)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    scale=st.floats(1e-3, 1e3),
    tau=st.floats(0.1, 20),
    nu=st.floats(0.1, 5),
)
def test_what_a_head_writes_is_bounded(seed: int, scale: float, tau: float, nu: float) -> None:
    mixer, (q, k, v) = made(Cosine, tau=tau, nu=nu, eps=1e-4), drawn(seed)
    pattern = mixer.pattern(mixer.scores(scale * q, scale * k, None))
    assert pattern.max() <= 1 / (1 + 5 * math.exp(-2 * tau)) + 1e-12  # of 6 tokens
    assert mixer.read(pattern, scale * v).norm(dim=-1).max() <= nu + 1e-12


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_the_length_of_queries_and_keys_does_not_matter(scale: float) -> None:
    mixer, (q, k, v) = made(Cosine, eps=1e-24), drawn()
    options = {"drop": torch.nn.Dropout(0.0), "fused": True}
    expected = mixer(q, k, v, None, **options)
    close(mixer(scale * q, k, v, None, **options), expected)
    close(mixer(q, scale * k, v, None, **options), expected)
    assert not torch.allclose(made(Cosine, eps=1.0)(scale * q, k, v, None, **options), expected)


def test_norms_of_values_are_constants_while_explaining() -> None:
    mixer, (q, k, v) = made(Cosine, eps=0.1), drawn()
    v.requires_grad_()
    options = {"drop": torch.nn.Dropout(0.0), "fused": True}
    with explanation_mode(mixer):
        z = mixer(q, k, v, None, **options)
        (row,) = torch.autograd.grad(z[1, 0, 2, 3], v)
    close((row * v).sum(), z[1, 0, 2, 3])
    assert torch.equal(z, mixer(q, k, v, None, **options))


def test_half_precision_does_not_overflow() -> None:
    mixer = made(Cosine)
    q, k, v = (300 * u.half() for u in drawn())
    z = mixer(q, k, v, None, drop=torch.nn.Dropout(0.0), fused=False)
    assert z.dtype == torch.half and z.isfinite().all()


@pytest.mark.parametrize("name", ["tau", "nu", "eps"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_numbers_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(SpecError, match=f"{name} of cosine attention is .* must be positive"):
        made(Cosine, **{name: value})
