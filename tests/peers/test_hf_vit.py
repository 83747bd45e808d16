"""Hugging Face ViT folders, loaded here, give transformers' logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from polysem.models.load import load_model

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unbiased": {"qkv_bias": False},
    "loose norm": {"layer_norm_eps": 1e-2},
    "tanh gelu": {"hidden_act": "gelu_new"},
    "quick gelu": {"hidden_act": "quick_gelu"},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu"},
    "odd mlp": {"intermediate_size": 37},
    "one head": {"num_attention_heads": 1, "num_hidden_layers": 1},
    "two classes": {"num_labels": 2},
    "oblong": {"image_size": [12, 20]},
}


def saved(folder: Path, **changes: Any) -> ViTForImageClassification:
    config = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 56,
        "image_size": 20,
        "patch_size": 4,
        "num_labels": 7,
        **changes,
    }
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**config)).eval()
    with torch.no_grad():  # as drawn, biases and norms are all zeros and ones
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def images(model: ViTForImageClassification) -> Tensor:
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(5, 3, height, width, generator=torch.Generator().manual_seed(1))


def difference(folder: Path, model: ViTForImageClassification) -> float:
    ours, x = load_model(folder).model, images(model)
    with torch.no_grad():
        theirs = model(x).logits
        assert theirs.std() > 0.1
        return (ours(x) - theirs).abs().max().item()


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_logits_are_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path, **changes)
    assert difference(tmp_path, model) <= 1e-5


@pytest.mark.parametrize("layout", ["disk", "modules"])
def test_names_of_both_generations_load(layout: str, tmp_path: Path) -> None:
    """transformers 5 keeps the names of version 4 on disk and has others in its modules."""
    model = saved(tmp_path)
    if layout == "modules":
        save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any(".encoder.layer.0." in name for name in names) == (layout == "disk")
    assert difference(tmp_path, model) <= 1e-5


def test_pickled_weights_load(tmp_path: Path) -> None:
    model = saved(tmp_path)
    path = tmp_path / "model.safetensors"
    torch.save(load_file(path), tmp_path / "pytorch_model.bin")
    path.unlink()
    assert difference(tmp_path, model) <= 1e-5


def test_weights_in_several_files_load(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert difference(tmp_path, model) <= 1e-5


def test_a_half_precision_folder_loads_as_single(tmp_path: Path) -> None:
    model = saved(tmp_path).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path).model.head.weight.dtype == torch.float32
    assert difference(tmp_path, model.float()) <= 1e-5
