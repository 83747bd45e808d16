"""Smoothing measures against slow definitions, and in a probe."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_probe import Noise, models

from polysem.errors import SpecError
from polysem.models.hooked import HookedVisionModel
from polysem.probe.probe import probe
from polysem.probe.smoothing import MEANINGS, attention_smoothing, token_smoothing


def test_token_measures_equal_their_definitions() -> None:
    tokens = torch.randn(3, 5, 7, generator=torch.manual_seed(0)) + 0.5
    found = token_smoothing(tokens).numpy()
    for image, x in enumerate(tokens.double().numpy()):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosines = [unit[i] @ unit[j] for i in range(5) for j in range(5) if i != j]
        high = np.linalg.norm(x - x.mean(0)) / np.linalg.norm(x)
        s = np.linalg.svd(x, compute_uv=False)
        p = s / s.sum()
        rank = np.exp(-(p * np.log(p)).sum())
        np.testing.assert_allclose(found[image], [np.mean(cosines), high, rank], rtol=1e-9)


def test_token_measures_at_their_extremes() -> None:
    alike = torch.ones(1, 6, 4)
    np.testing.assert_allclose(token_smoothing(alike)[0], [1, 0, 1], atol=1e-7)
    apart = torch.eye(6)[None]
    np.testing.assert_allclose(token_smoothing(apart)[0], [0, np.sqrt(5 / 6), 6], atol=1e-9)
    assert token_smoothing(torch.ones(1, 1, 4))[0, 0].isnan()  # one token has no pair


def test_attention_measures() -> None:
    even = attention_smoothing(torch.zeros(2, 3, 4, 4))
    np.testing.assert_allclose(even, [[np.log(4), 0]] * 2, atol=1e-6)
    logits = torch.log(torch.tensor([0.9, 0.05, 0.05])).expand(1, 1, 2, 3)
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.05))
    np.testing.assert_allclose(attention_smoothing(logits)[0], [entropy, 0.1], atol=1e-6)


@pytest.mark.parametrize("name", ["cls", "bcos"])
def test_a_probe_keeps_means_over_images(name: str, tmp_path: Path) -> None:
    model, data = models()[name](), Noise(9)
    run = probe(
        model, data, out=tmp_path / "run", sites="hook_pooled", smoothing=True, batch_size=4
    )
    table = run.table("smoothing")
    assert table["layer"].tolist() == [0, 1]
    assert table["images"].tolist() == [9, 9]
    assert table.attrs["columns"] == MEANINGS
    hooked = HookedVisionModel(model.model)
    pixels = torch.stack([model.transform(data.read(i)) for i in range(9)])
    _, cache = hooked.run_with_cache(model.transform.normalize(pixels))
    for layer in (0, 1):
        tokens = cache[f"blocks.{layer}.hook_resid_post"][:, hooked.n_prefix_tokens :]
        exact = torch.cat(
            [token_smoothing(tokens), attention_smoothing(cache["attn_scores", layer])], dim=1
        ).detach().numpy()  # fmt: skip
        row = table.iloc[layer]
        names = ["token_cosine", "high_frequency_share", "effective_rank", "attention_entropy",
                 "trivial_share"]  # fmt: skip
        np.testing.assert_allclose(row[names].astype(float), exact.mean(0), rtol=1e-4)
        error = exact.std(0, ddof=1) / 3
        np.testing.assert_allclose(row[[f"{n}_se" for n in names]].astype(float), error, rtol=1e-3)


def test_a_network_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no blocks of tokens; leave out --smoothing"):
        probe(models()["cnn"](), Noise(4), out=tmp_path / "run", smoothing=True)
    assert not (tmp_path / "run").exists()
