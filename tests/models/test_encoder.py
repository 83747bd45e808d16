"""Encoders: real files of timm and open_clip, small, saved here in the format they come in."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from polysem.errors import CheckpointError, MissingError, SpecError
from polysem.models.encoder import Encoder, encoder_of, load_encoder, pooled_fingerprint
from polysem.models.load import load_model

TINY: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make open_clip know an architecture of a few thousand weights, and return such a model."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny-test", TINY)
    torch.manual_seed(3)
    return open_clip.CLIP(**TINY).eval()


def pixels(encoder: Encoder, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (n, 3, *encoder.transform.size)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("form", ["pt", "training", "safetensors", "tower"])
def test_open_clip_files_give_the_image_tower(form: str, tiny_clip: Any, tmp_path: Path) -> None:
    state = tiny_clip.state_dict()
    file = tmp_path / ("clip.safetensors" if form == "safetensors" else "clip.pt")
    if form == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, file)
    elif form == "training":  # what open_clip's training script writes
        wrapped = {f"module.{k}": v for k, v in state.items()}
        torch.save({"epoch": 1, "name": "x", "state_dict": wrapped}, file)
    elif form == "tower":
        torch.save({k: v for k, v in state.items() if k.startswith("visual.")}, file)
    else:
        torch.save(state, file)
    encoder = load_encoder(f"open_clip:ViT-tiny-test:{file}")
    seen = pixels(encoder)
    with torch.no_grad():
        exact = tiny_clip.encode_image(encoder.transform.normalize(seen), normalize=True)
    torch.testing.assert_close(encoder(seen), exact)
    assert encoder.transform.mean == open_clip.OPENAI_DATASET_MEAN
    assert encoder.transform.size == (32, 32)
    assert not encoder.random


def test_random_encoders_are_the_same_every_time(tiny_clip: Any) -> None:
    before = torch.get_rng_state()
    a, b = load_encoder("open_clip:ViT-tiny-test"), load_encoder("open_clip:ViT-tiny-test")
    c, d = load_encoder("timm:resnet20_32"), load_encoder("timm:resnet20_32")
    assert torch.equal(torch.get_rng_state(), before)
    assert a.fingerprint == b.fingerprint != c.fingerprint == d.fingerprint
    assert a.random and c.random


def test_a_timm_backbone_with_weights_from_a_file(tmp_path: Path) -> None:
    model = timm.create_model("resnet20_32", num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = load_encoder(f"timm:resnet20_32:{tmp_path / 'weights.safetensors'}")
    seen = pixels(encoder)
    with torch.no_grad():
        inputs = encoder.transform.normalize(seen)
        features = model.forward_head(model.forward_features(inputs), pre_logits=True)
    exact = torch.nn.functional.normalize(features, dim=1)
    torch.testing.assert_close(encoder(seen), exact)
    assert not encoder.random


@pytest.mark.parametrize("name", ["vit_micro_patch8_gap_64", "bcos_vit_micro_patch8_64"])
def test_a_model_is_the_encoder_of_what_its_classifier_reads(name: str) -> None:
    torch.manual_seed(0)
    loaded = load_model(f"timm:{name}", num_classes=3)
    encoder = encoder_of(loaded)
    kept: list[torch.Tensor] = []
    handle = loaded.model.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    seen = pixels(encoder)
    with torch.no_grad():
        loaded.model(loaded.transform.normalize(seen))
    handle.remove()
    torch.testing.assert_close(encoder(seen), torch.nn.functional.normalize(kept[0], dim=1))
    assert encoder.fingerprint == pooled_fingerprint(loaded)
    assert encoder.spec == "model"


def test_what_cannot_be_loaded_is_said(tiny_clip: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="open_clip has no model called 'ViT-tiny-tost'; did you"):
        load_encoder("open_clip:ViT-tiny-tost")
    with pytest.raises(MissingError, match=r"there is no file .*nothing\.pt"):
        load_encoder(f"open_clip:ViT-tiny-test:{tmp_path / 'nothing.pt'}")
    with pytest.raises(SpecError, match="no encoder 'rubbish'"):
        load_encoder("rubbish")
    with pytest.raises(SpecError, match="it needs one to be named"):
        load_encoder("model")
    torch.save({"text.x": torch.zeros(2)}, tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match="no image tower"):
        load_encoder(f"open_clip:ViT-tiny-test:{tmp_path / 'text.pt'}")
    state = tiny_clip.state_dict()
    del state["visual.proj"]
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"does not fit.*missing: proj"):
        load_encoder(f"open_clip:ViT-tiny-test:{tmp_path / 'short.pt'}")
