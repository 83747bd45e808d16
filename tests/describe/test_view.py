import pytest
import torch

from polysem.describe.view import View
from polysem.errors import DataError, NonFiniteError


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_probabilities_are_the_softmax_over_all_concepts_whatever_the_slice() -> None:
    images, texts = drawn(5, 3), drawn(7, 3, seed=1)
    view = View(images, texts)
    cosine = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    expected = (10 * cosine).softmax(dim=1)
    for concepts in view.chunks(3):
        found = view.probability(concepts, scale=10)
        torch.testing.assert_close(found, expected[:, concepts], rtol=1e-12, atol=0)
    assert [(c.start, c.stop) for c in view.chunks(3)] == [(0, 3), (3, 6), (6, 7)]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="embeddings of 3 numbers and concepts of 4"):
        View(drawn(5, 3), drawn(7, 4))
    with pytest.raises(DataError, match="texts"):
        View(drawn(5, 3), drawn(0, 3))
    zero = drawn(7, 3)
    zero[2] = 0
    with pytest.raises(NonFiniteError, match="among the texts"):
        View(drawn(5, 3), zero)
