"""Manhattan attention against loops over pairs of patches, and its two forms against each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixing import GRID, close, drawn, made, mixed, slow_softmax
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.attention import PositionAttention, attention_layer
from polysem.models.manhattan import Manhattan
from polysem.models.mixers import Softmax

PLACES = [(y, x) for y in range(GRID[0]) for x in range(GRID[1])]


def gamma(head: int, heads: int = 2, start: float = 2, spread: float = 4) -> float:
    return 1 - 2 ** -(start + spread * head / heads)


def product(pattern: Tensor, *, axes: str = "yx") -> Tensor:
    """Return the paper's ``softmax ⊙ γ^distance`` [image, head, query, key], rows scaled to 1."""
    out = pattern.clone()
    for head in range(2):
        for i, (y, x) in enumerate(PLACES):
            for j, (other_y, other_x) in enumerate(PLACES):
                out[:, head, i, j] *= gamma(head) ** (abs(y - other_y) + abs(x - other_x))
    return out / out.sum(-1, keepdim=True)


def test_heads_decay_as_in_the_paper() -> None:
    mixer = Manhattan(4, 3, grid=GRID, dtype=torch.float64)
    rates = torch.tensor([0.75, 0.875, 0.9375, 0.96875], dtype=torch.float64)
    close(mixer.log_decay.exp(), rates)


def test_the_whole_form_is_the_product_renormalised() -> None:
    mixer, (_, _, v) = made(Manhattan), drawn()
    close(mixed(mixer, mixer.bias(6)[None]), product(slow_softmax()) @ v)


def slow_decomposed(q: Tensor, k: Tensor) -> Tensor:
    """Return the pattern: along the row of each key's place, then along the query's column."""
    image, heads, n, d = q.shape
    out = torch.empty(image, heads, n, n, dtype=torch.float64)

    def row(i: int, h: int, query: tuple[int, int], keys: list[tuple[int, int]]) -> list[float]:
        at = PLACES.index
        weights = []
        for key in keys:
            score = float(q[i, h, at(query)] @ k[i, h, at(key)]) / math.sqrt(d)
            distance = abs(query[0] - key[0]) + abs(query[1] - key[1])
            weights.append(math.exp(score) * gamma(h) ** distance)
        return [weight / sum(weights) for weight in weights]

    rows, columns = range(GRID[0]), range(GRID[1])
    for i in range(image):
        for h in range(heads):
            for a, (y, x) in enumerate(PLACES):
                down = row(i, h, (y, x), [(other, x) for other in rows])
                for b, (other_y, other_x) in enumerate(PLACES):
                    along = row(i, h, (other_y, x), [(other_y, other) for other in columns])
                    out[i, h, a, b] = down[other_y] * along[other_x]
    return out


def test_the_decomposed_form_reads_rows_then_columns() -> None:
    mixer, (q, k, v) = made(Manhattan, decomposed=True), drawn()
    expected = slow_decomposed(q, k)
    assert mixer.bias(6) is None
    close(mixer.pattern(mixer.scores(q, k, None)), expected)
    close(mixed(mixer), expected @ v)
    close(mixed(mixer, fused=False), expected @ v)


def test_with_no_queries_both_forms_are_the_same() -> None:
    whole, apart = made(Manhattan), made(Manhattan, decomposed=True)
    q, k, _ = drawn()
    close(
        whole.pattern(whole.scores(0 * q, k, whole.bias(6))),
        apart.pattern(apart.scores(0 * q, k, None)),
    )


def test_the_bias_is_the_sum_of_its_sides() -> None:
    mixer = Manhattan(3, 2, grid=(4, 5), dtype=torch.float64)
    sides = [Manhattan(3, 2, grid=grid, dtype=torch.float64) for grid in ((4, 1), (1, 5))]
    down, along = (side.bias(math.prod(side.trained)) for side in sides)
    both = down[:, :, None, :, None] + along[:, None, :, None, :]
    close(mixer.bias(20), both.reshape(3, 20, 20))


def test_without_decay_it_is_plain_attention() -> None:
    mixer = made(Manhattan, start=math.inf, spread=0)
    assert not mixer.bias(6).any()
    assert torch.equal(mixed(mixer, mixer.bias(6)[None]), mixed(made(Softmax), mixer.bias(6)[None]))
    close(mixed(mixer, mixer.bias(6)[None]), mixed(made(Softmax)))


def test_prefix_tokens_are_near_everything() -> None:
    plain, mixer = made(Manhattan), made(Manhattan, n_prefix_tokens=2)
    bias = mixer.bias(8)
    assert torch.equal(bias[:, 2:, 2:], plain.bias(6))
    assert not bias[:, :2].any() and not bias[:, :, :2].any()


def test_a_class_token_in_a_timm_model() -> None:
    from timm.models.vision_transformer import VisionTransformer

    layer = attention_layer(
        PositionAttention,
        mixer_type=Manhattan,
        mixer_options=(("grid", (2, 3)), ("n_prefix_tokens", 1), ("local", True)),
    )
    model = VisionTransformer(
        img_size=(8, 12), patch_size=4, embed_dim=8, depth=2, num_heads=2, attn_layer=layer,
        num_classes=5,
    )  # fmt: skip
    assert model(torch.rand(2, 3, 8, 12)).shape == (2, 5)
    assert model.blocks[0].attn.attention_bias(7).shape == (2, 7, 7)


@pytest.mark.parametrize("options", [{}, {"decomposed": True}, {"n_prefix_tokens": 1}], ids=str)
def test_local_enhancement_is_a_convolution_of_the_values(options: dict[str, Any]) -> None:
    mixer, prefix = made(Manhattan, local=True, **options), options.get("n_prefix_tokens", 0)
    q, k, v = drawn(n_tokens=6 + prefix)
    drop = nn.Dropout(0.0)
    bias = mixer.bias(6 + prefix)
    z = mixer(q, k, v, bias, drop=drop, fused=True)
    convolution, mixer.local = mixer.local, None
    without = mixer(q, k, v, bias, drop=drop, fused=True)
    near = torch.zeros_like(v)
    padded = F.pad(v[:, :, prefix:].unflatten(2, GRID), (0, 0, 2, 2, 2, 2))
    for head in range(2):
        for feature in range(4):
            kernel = convolution.weight[head * 4 + feature, 0]
            for place, (y, x) in enumerate(PLACES):
                window = padded[:, head, y : y + 5, x : x + 5, feature]
                near[:, head, prefix + place, feature] = (window * kernel).sum((1, 2))
    close(z - without, near)
    assert convolution.bias is None


def test_larger_squares_and_nothing_else() -> None:
    mixer = made(Manhattan)
    assert mixer.bias(16).shape == (2, 16, 16)
    close(mixer.bias(9)[:, 0, 8], 4 * mixer.log_decay)  # from corner to corner of 3 × 3
    with pytest.raises(SpecError, match="7 patches are neither"):
        mixer.bias(7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grid": None}, "needs the grid"),
        ({"start": 0.0}, "start must be above 0"),
        ({"spread": -1.0}, "spread at least 0"),
        ({"start": math.nan}, "start must be above 0"),
        ({"decomposed": True, "n_prefix_tokens": 1}, "no place for prefix tokens"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        made(Manhattan, **options)


def test_the_decomposed_form_takes_no_bias() -> None:
    mixer, (q, k, _) = made(Manhattan, decomposed=True), drawn()
    with pytest.raises(SpecError, match="takes no masks"):
        mixed(mixer, torch.zeros(6, 6).double())
    with pytest.raises(SpecError, match="takes no masks"):
        mixer.scores(q, k, torch.zeros(6, 6))
