"""Texts are embedded once for each vocabulary, text tower and templates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from polysem.describe.texts import cache_folder, embed_concepts, embed_vocabulary
from polysem.describe.vocabulary import Vocabulary


class Tower:
    """Embeds a text by its length and letters, and counts how often it is asked."""

    def __init__(self, text_digest: str) -> None:
        self.text_digest, self.asked = text_digest, 0

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += 1
        found = [[len(text), text.count("a") + 1.0, text.count("o")] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(found, dtype=torch.float32), dim=1)


WORDS = Vocabulary("words", ("cat", "a dog"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYSEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_concepts_are_the_mean_of_their_sentences_of_length_one() -> None:
    tower: Any = Tower("x")
    found = embed_concepts(tower, ["cat", "a {dog}"], ["{}", "see {}"])
    each = tower.embed_texts(["cat", "see cat"]), tower.embed_texts(["a {dog}", "see a {dog}"])
    expected = torch.stack([torch.nn.functional.normalize(pair.mean(0), dim=0) for pair in each])
    torch.testing.assert_close(found, expected)


def test_the_second_time_nothing_is_embedded(cache: Path) -> None:
    assert cache_folder() == cache
    tower: Any = Tower("x")
    first = embed_vocabulary(tower, WORDS, ["{}"])
    asked = tower.asked
    torch.testing.assert_close(embed_vocabulary(tower, WORDS, ["{}"]), first, rtol=0, atol=0)
    assert tower.asked == asked
    for other, words, templates in [
        (Tower("y"), WORDS, ["{}"]),
        (Tower("x"), Vocabulary("words", ("cat", "a fox")), ["{}"]),
        (Tower("x"), WORDS, ["the {}"]),
    ]:
        embed_vocabulary(other, words, templates)  # type: ignore[arg-type]
        assert other.asked > 0


def test_a_cache_that_is_damaged_or_read_only_costs_time_alone(cache: Path) -> None:
    tower: Any = Tower("x")
    first = embed_vocabulary(tower, WORDS, ["{}"])
    (file,) = (cache / "texts").glob("*.safetensors")
    file.write_bytes(b"not a file")
    torch.testing.assert_close(embed_vocabulary(tower, WORDS, ["{}"]), first)
    file.unlink()
    (cache / "texts").rmdir()
    (cache / "texts").write_text("in the way")
    torch.testing.assert_close(embed_vocabulary(tower, WORDS, ["{}"]), first)
