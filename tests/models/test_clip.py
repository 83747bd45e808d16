"""Loading of CLIP models through open_clip, from small weights saved in its own formats."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from polysem.errors import CheckpointError, MissingError, NonFiniteError, SpecError
from polysem.models.clip import load_clip

SMALL: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a small model of an architecture called polysem-small, which open_clip then knows."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "polysem-small", SMALL)
    torch.manual_seed(0)
    return open_clip.create_model("polysem-small").eval()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_in_open_clip_s_format_gives_open_clip_s_embeddings(
    small: Any, tmp_path: Path, wrapped: bool
) -> None:
    state = small.state_dict()
    if wrapped:  # as its training writes it
        state = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(state, tmp_path / "epoch_3.pt")
    clip = load_clip(f"polysem-small:{tmp_path / 'epoch_3.pt'}")
    tokens = open_clip.get_tokenizer("polysem-small")(["a red circle", "a dog"])
    with torch.no_grad():
        texts = small.encode_text(tokens, normalize=True)
        pixels = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(clip.embed_texts(["a red circle", "a dog"]), texts)
        torch.testing.assert_close(clip.image_features(pixels), small.encode_image(pixels))
    assert clip.transform.size == (32, 32)
    assert not clip.model.training


def test_a_folder_in_open_clip_s_layout(small: Any, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    config = {"model_cfg": SMALL, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(small.state_dict(), folder / "open_clip_pytorch_model.bin")
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    clip, same = load_clip(folder), load_clip(f"polysem-small:{tmp_path / 'weights.pt'}")
    assert (clip.transform.mean, clip.transform.std) == ((0.5,) * 3, (0.25,) * 3)
    assert clip.digest == same.digest
    torch.testing.assert_close(clip.embed_texts(["star"]), same.embed_texts(["star"]))
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="model_cfg"):
        load_clip(folder)
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="clip holds no weights"):
        load_clip(folder)


def test_each_tower_has_its_digest(small: Any, tmp_path: Path) -> None:
    digests = []
    for name in (None, "visual.proj", "text_projection"):
        if name:
            with torch.no_grad():
                small.get_parameter(name).add_(1)
        torch.save(small.state_dict(), tmp_path / "weights.pt")
        clip = load_clip(f"polysem-small:{tmp_path / 'weights.pt'}")
        digests.append((clip.digest, clip.text_digest))
    assert digests[0][0] != digests[1][0] == digests[2][0]
    assert digests[0][1] == digests[1][1] != digests[2][1]


def test_many_texts_are_embedded_a_few_at_a_time(small: Any, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    clip = load_clip(f"polysem-small:{tmp_path / 'weights.pt'}")
    texts = [f"number {i}" for i in range(300)]
    found = clip.embed_texts(texts)
    assert found.shape == (300, 12)
    torch.testing.assert_close(found[299], clip.embed_texts(texts[299:])[0])


def test_bad_weights_are_refused_in_a_sentence(small: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(small.state_dict(), file)
    with pytest.raises(CheckpointError, match="RN50"):  # another architecture
        load_clip(f"RN50:{file}")
    with torch.no_grad():
        small.visual.proj.fill_(torch.nan)
    torch.save(small.state_dict(), file)
    with pytest.raises(NonFiniteError):
        load_clip(f"polysem-small:{file}")


def test_bad_specs_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"no model called 'ViT-B-23'; did you mean 'ViT-B-32'"):
        load_clip("ViT-B-23:openai")
    with pytest.raises(SpecError, match=r"ViT-B-32 needs weights: ViT-B-32:TAG or ViT-B-32:FILE"):
        load_clip("ViT-B-32")
    with pytest.raises(MissingError, match=r"no file laion, and ViT-B-32 has no weights tagged"):
        load_clip("ViT-B-32:laion")


@pytest.mark.parametrize("spec", ["ViT-B-32:openai", "hf-hub:nobody/nothing"])
def test_a_missing_download_says_what_to_do(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    level = logging.getLogger().level
    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", offline)
    match = r"no route to host.*name the file: (ARCH|ViT-B-32):FILE"
    with pytest.raises(MissingError, match=match):
        load_clip(spec)
    assert logging.getLogger().level == level


def test_a_whole_vit_b_32_loads_from_open_clip_s_own_file(tmp_path: Path) -> None:
    """The architecture that people use, with weights drawn at random and kept as it keeps them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        saved = open_clip.create_model("ViT-B-32", precision="fp16")
    file = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(saved.state_dict(), file)
    clip = load_clip(f"ViT-B-32:{file}")
    assert clip.transform.size == (224, 224)
    with torch.no_grad():
        pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        image, words = clip.image_features(pixels), clip.embed_texts(["a red circle"])
        torch.testing.assert_close(image, saved.float().encode_image(pixels), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            words, saved.encode_text(open_clip.get_tokenizer("ViT-B-32")(["a red circle"]), True),
            rtol=1e-3, atol=1e-3,
        )  # fmt: skip
    with pytest.raises(CheckpointError, match="ViT-B-16"):
        load_clip(f"ViT-B-16:{file}")
