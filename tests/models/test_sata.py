"""SATA against a loop over every weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixing import close, drawn, made, mixed, slow_softmax
from torch import Tensor

from polysem.models.mixers import Softmax
from polysem.models.sata import Sata


def slow_sata(pattern: Tensor, threshold: float, strength: float) -> Tensor:
    rows = []
    for row in pattern.flatten(0, 2).tolist():
        limit = threshold * max(row)
        trivial = [a for a in row if a <= limit]
        total = sum(trivial)
        rows.append([a if a > limit else strength * a * a / (total + 1e-6) for a in row])
    return torch.tensor(rows, dtype=torch.float64).view_as(pattern)


@pytest.mark.parametrize(("threshold", "strength"), [(0.1, 0.5), (0.5, 0.2), (0.05, -0.3)])
def test_the_pattern_is_that_of_the_paper(threshold: float, strength: float) -> None:
    mixer, (q, k, v) = made(Sata, threshold=threshold, strength=strength), drawn()
    full = slow_softmax()
    expected = slow_sata(full, threshold, strength)
    pattern = mixer.pattern(mixer.scores(q, k, None))
    close(pattern, expected)
    close(mixed(mixer), expected @ v)
    trivial = full <= threshold * full.amax(-1, keepdim=True)
    assert 0 < trivial.sum() < trivial.numel()
    assert torch.equal(pattern[~trivial], mixer.scores(q, k, None).softmax(-1)[~trivial])


def test_a_threshold_of_zero_is_plain_attention() -> None:
    assert torch.equal(mixed(made(Sata, threshold=0.0)), mixed(made(Softmax), fused=False))


@given(
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=9),
    threshold=st.floats(0, 0.99),
    strength=st.floats(0, 1),
)
def test_trivial_weights_together_are_bounded_and_keep_their_order(
    logits: list[float], threshold: float, strength: float
) -> None:
    mixer = made(Sata, threshold=threshold, strength=strength)
    scores = torch.tensor(logits, dtype=torch.float64)
    full, pattern = scores.softmax(0), mixer.pattern(scores).detach()
    trivial = full <= threshold * full.max()
    assert torch.equal(pattern[~trivial], full[~trivial])
    assert float(pattern[trivial].sum()) <= strength * threshold * float(full.max()) + 1e-12
    assert float(pattern.sum()) <= 1 + 1e-9
    order = full[trivial].argsort()
    assert (pattern[trivial][order].diff() >= 0).all()


def test_the_strength_learns_and_is_one_number_a_layer() -> None:
    mixer = made(Sata, threshold=0.3)
    assert mixer.strength.shape == () and mixer.strength.item() == 0.5
    torch.autograd.gradcheck(
        lambda q, k, v, s: torch.func.functional_call(
            mixer, {"strength": s}, (q, k, v, None), {"drop": torch.nn.Dropout(0.0), "fused": True}
        ),
        (*(t[:1].requires_grad_() for t in drawn()), torch.tensor(0.4).double().requires_grad_()),
    )
    mixer.strength.data.fill_(3)
    mixer.reset_parameters()
    assert mixer.strength.item() == 0.5
