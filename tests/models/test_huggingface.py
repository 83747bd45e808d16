"""Hugging Face folders: what is read beside the weights, and what is refused.

Logits are compared with those of transformers in tests/peers/test_hf_vit.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.utils import logging

from polysem.errors import CheckpointError, NonFiniteError
from polysem.models.load import load_model
from polysem.models.transform import Transform

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "vit")


def save(folder: Path, **changes: Any) -> Path:
    config = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 56,
        "image_size": 20,
        "patch_size": 4,
        "num_labels": 3,
        **changes,
    }
    ViTForImageClassification(ViTConfig(**config)).save_pretrained(folder)
    return folder


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def fails(message: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_classes_come_from_the_configuration(tmp_path: Path, folder: Path) -> None:
    assert load_model(folder).classes is None  # transformers' LABEL_0 … name nothing
    named = save(tmp_path / "named", id2label={0: "cat", 1: "dog", 2: "newt"})
    loaded = load_model(named)
    assert loaded.classes == ("cat", "dog", "newt")
    assert loaded.name == "vit_huggingface" and loaded.spec == str(named)
    with pytest.raises(CheckpointError, match="has 3 classes, not the 5 asked for"):
        load_model(named, num_classes=5)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (None, Transform((20, 20), 1.0, "bilinear", HALF, HALF)),
        (
            {
                "size": {"height": 20, "width": 20},
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [1, 2, 3],
                "resample": 3,
            },
            Transform((20, 20), 1.0, "bicubic", (0.1, 0.2, 0.3), (1, 2, 3)),
        ),
        ({"size": 20, "do_normalize": False, "resample": 1}, Transform((20, 20), 1.0, "lanczos")),
        (
            {"size": {"shortest_edge": 25}, "do_center_crop": True, "crop_size": 20},
            Transform((20, 20), 0.8, "bilinear", HALF, HALF),
        ),
        (
            {"size": {"height": 224, "width": 224}},
            Transform((20, 20), 1.0, "bilinear", HALF, HALF),
        ),
    ],
)
def test_the_transform_is_the_processors(
    folder: Path, processor: dict[str, Any] | None, expected: Transform
) -> None:
    if processor is not None:
        edit(folder, "preprocessor_config.json", **processor)
    assert load_model(folder).transform == expected


def test_square_images_come_out_as_from_the_processor(folder: Path) -> None:
    processor = ViTImageProcessor(size={"height": 20, "width": 20})
    processor.save_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    transform = load_model(folder).transform
    assert torch.allclose(transform.normalize(transform(image)[None]), theirs, rtol=0, atol=1e-6)


def test_transformers_is_quiet_and_left_as_it_was(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_other_architectures_are_named(folder: Path) -> None:
    edit(folder, architectures=["SwinForImageClassification"], model_type="swin")
    fails(r"holds SwinForImageClassification; .* only ViTForImageClassification", folder)
    edit(folder, architectures=None, model_type="bert")
    fails(r"holds bert; ", folder)
    edit(folder, architectures=["ViTForImageClassification"], model_type="vit", hidden_act="mish")
    fails(r"activation 'mish'; known: gelu, ", folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_damaged_configuration(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    fails(r"config\.json (cannot be read as JSON|holds no JSON object)", folder)


def test_a_configuration_that_makes_no_sense(folder: Path) -> None:
    edit(folder, hidden_size="wide")
    fails("not sizes", folder)
    edit(folder, hidden_size=24)
    edit(folder, "preprocessor_config.json", image_mean=[0.5])
    fails(r"preprocessor_config\.json cannot be understood .*mean must have 3 numbers", folder)


def test_damaged_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    fails("cannot be loaded by transformers: ", folder)
    path.unlink()
    fails(r"cannot be loaded by transformers: .*model\.safetensors", folder)


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = load_file(path)
    for changes, message in (
        ({"classifier.weight": torch.ones(4, 24)}, r"wrong shape: classifier\.weight \[4, 24\]"),
        ({"classifier.bias": None}, r"missing: classifier\.bias"),
        ({"wings": torch.ones(2)}, r"unexpected: wings"),
    ):
        changed = {k: v for k, v in {**whole, **changes}.items() if v is not None}
        save_file(changed, path, metadata={"format": "pt"})
        fails(f"do not fit its config.json; {message}", folder)
    save_file({**whole, "vit.pooler.dense.bias": torch.ones(24)}, path, metadata={"format": "pt"})
    load_model(folder)  # the pooler of the base model, which no classifier uses


def test_weights_that_are_no_numbers(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = load_file(path)
    whole["classifier.bias"][1] = float("nan")
    save_file(whole, path, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"vit holds NaN or infinity in head\.bias"):
        load_model(folder)


def test_nothing_in_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    (folder / "model.safetensors").unlink()
    torch.save({"classifier.bias": Malicious()}, folder / "pytorch_model.bin")
    fails(r"pytorch_model\.bin is refused and was not run", folder)
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'pwned')!r})")
    edit(folder, auto_map={"AutoModelForImageClassification": "evil.Model"})
    fails(r"pytorch_model\.bin is refused and was not run", folder)
    save(folder)
    edit(folder, auto_map={"AutoModelForImageClassification": "evil.Model"})
    load_model(folder)
    assert not (tmp_path / "pwned").exists()


def test_the_architecture_can_be_built_anew(folder: Path) -> None:
    loaded = load_model(folder)
    assert loaded.build is not None
    fresh, held = loaded.build().state_dict(), loaded.model.state_dict()
    assert {k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in held.items()}
    assert not torch.equal(fresh["blocks.0.attn.qkv.weight"], held["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": 10**6}, "more parameters than"),
        ({"num_hidden_layers": 2**31}, "more parameters than"),
        ({"intermediate_size": 10**12}, "more parameters than"),
        ({"hidden_size": "wide"}, "not sizes"),
        ({"hidden_size": -3}, "not sizes"),
        ({"architectures": 3}, "holds 3"),
        ({"patch_size": 0}, "cannot be"),
        ({"image_size": []}, "cannot be"),
    ],
)
def test_a_config_that_no_weights_stand_behind(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "vit"
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=12, image_size=16, patch_size=8)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)
