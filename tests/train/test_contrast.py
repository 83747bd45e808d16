"""Two towers trained on phrases: the loss, the loop around it, and that open_clip reads both."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss
from PIL import Image

from polysem.data.captions import vocabulary, words
from polysem.data.shapes import Shapes
from polysem.errors import DataError, RecipeError
from polysem.models.checkpoint import read_checkpoint
from polysem.models.clip import load_clip
from polysem.models.encoder import image_encoder
from polysem.train.bench import bench_train
from polysem.train.captioned import caption_truth
from polysem.train.contrast import build_clip, match_phrases, sigmoid_loss
from polysem.train.loop import Progress, train
from polysem.train.recipe import Recipe, load_recipe, parse_recipe

MakeTowers = Callable[..., Recipe]
ARGS: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    "init_logit_scale": math.log(10),
    "init_logit_bias": -4.0,
}


def _recipe(changes: Mapping[str, Any] | None = None) -> Recipe:
    data: dict[str, Any] = {
        "model": {"name": "open_clip", "args": ARGS},
        "data": {"train": "shapes:train?n=64&size=32", "test": "shapes:test?n=40&size=32"},
        "contrast": {"phrases": 2},
        "optimiser": {"lr": 1e-2},
        "schedule": {"epochs": 4, "warmup_steps": 2},
        "augment": {"flip": True},
        "batch_size": 16,
        "snapshots": 0,
        "checkpoint_every": 5,
        "save_as": "float16",
        "notes": "Knows drawings.",
    }
    for key, value in (changes or {}).items():
        both = isinstance(value, Mapping) and isinstance(data.get(key), Mapping)
        data[key] = {**data[key], **value} if both else value
    return parse_recipe(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip") / "out"
    train(_recipe(), out=out)
    return out


@given(st.integers(0, 2**32))
def test_the_loss_is_siglip_s_over_the_pairs_that_are_known(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, (3, 4))
    truth, known = rng.random((3, 4)) < 0.3, rng.random((3, 4)) < 0.8
    total = 0.0
    for i in range(3):
        for j in range(4):
            sign = 1 if truth[i, j] else -1
            total += known[i, j] * math.log(1 + math.exp(-sign * logits[i, j]))
    found = sigmoid_loss(*map(torch.from_numpy, (logits, truth, known)))
    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_it_is_open_clip_s_own_loss_where_phrase_i_is_true_of_image_i_alone() -> None:
    torch.manual_seed(0)
    images, texts = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=2)
    scale, bias = torch.tensor(10.0), torch.tensor(-4.0)
    theirs = SigLipLoss()(images, texts, scale, bias)
    logits = scale * images @ texts.T + bias
    ours = sigmoid_loss(logits, torch.eye(5, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool))
    torch.testing.assert_close(ours, theirs)


def test_a_training_learns_and_writes_a_folder_of_open_clip_s(trained: Path) -> None:
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert log[-1]["train_loss"] < 0.8 * log[0]["train_loss"]
    assert 0 <= log[-1]["test_auroc_lowest_tenth"] <= log[-1]["test_auroc"] <= 1
    files = {path.name for path in trained.iterdir()}
    assert files == {
        "recipe.yaml", "log.jsonl", "curves.png", "README.md",
        "open_clip_config.json", "open_clip_model.safetensors",
    }  # fmt: skip
    assert load_recipe(trained / "recipe.yaml") == _recipe()
    metrics = read_checkpoint(trained / "open_clip_model.safetensors").metrics or {}
    assert len(metrics["test_concept_auroc"]) == 157
    card = (trained / "README.md").read_text()
    assert card.startswith("# open_clip, trained on shapes:train?n=64&size=32\n\nKnows drawings.")
    assert f"Zero-shot AUROC {metrics['test_auroc']:.4f}" in card
    assert "open_clip_torch" in card


def test_open_clip_itself_loads_it_and_embeds_alike(trained: Path) -> None:
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{trained}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{trained}")
    clip = load_clip(trained)
    assert clip.trained_on == "shapes:train?n=64&size=32"
    image: Image.Image = Shapes("test", n=1, size=32).read(0)
    with torch.inference_mode():
        texts = theirs.eval().encode_text(tokenizer(["red circle"]), normalize=True)
        images = theirs.encode_image(preprocess(image)[None], normalize=True)
    torch.testing.assert_close(clip.embed_texts(["red circle"]), texts)
    torch.testing.assert_close(image_encoder(clip)(clip.transform(image)[None]), images)
    written = read_checkpoint(trained / "open_clip_model.safetensors").state_dict
    assert all(torch.equal(value, written[key]) for key, value in theirs.state_dict().items())


class _PressCtrlC:
    def __call__(self, progress: Progress) -> None:
        if progress.stage == "train" and progress.done == 7:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_training_goes_on_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7"):
        train(_recipe(), out=tmp_path / "out", on_progress=_PressCtrlC())
    result = train(_recipe(), out=tmp_path / "out", resume=True)
    one = read_checkpoint(result.path).state_dict
    other = read_checkpoint(trained / result.path.name).state_dict
    assert all(torch.equal(one[key], other[key]) for key in other)
    again = train(_recipe(), out=tmp_path / "out", resume=True)  # which has finished
    assert again.metrics["test_auroc"] == result.metrics["test_auroc"]


def test_auroc_counts_pairs_of_images() -> None:
    torch.manual_seed(0)
    recipe = _recipe()
    model, transform = build_clip(recipe.model)
    images = caption_truth(Shapes("test", n=30, size=32), transform, device=torch.device("cpu"))
    found = match_phrases(model, images, transform, recipe)
    assert model.training
    model.eval()
    with torch.inference_mode():
        tokens = open_clip.tokenize([words(phrase) for phrase in vocabulary()], context_length=16)
        towers = model(transform.normalize(images.pixels), tokens)
    likeness = (towers["image_features"] @ towers["text_features"].T).double().numpy()
    shown = Shapes("test", n=30, size=32).concept_matrix()
    for concept in range(shown.shape[1]):
        yes, no = likeness[shown[:, concept], concept], likeness[~shown[:, concept], concept]
        if len(yes) and len(no):
            pairs = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
            assert found.auroc[concept] == pytest.approx(pairs, abs=0.02)  # float32 ties
        else:
            assert math.isnan(found.auroc[concept])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"contrast": None}, "contrast trains a CLIP model and nothing else does"),
        ({"model": {"name": "vit_micro_patch8_gap_64"}}, "give it with model.name 'open_clip'"),
        ({"snapshots": 3}, "keep their defaults: snapshots"),
        ({"augment": {"turn": True}, "ema": 0.9}, "keep their defaults: ema, augment"),
        ({"drop_head": {"mode": "half"}}, "keep their defaults: drop_head"),
        ({"data": {"permute_labels": True}}, "keep their defaults: data"),
        ({"contrast": {"crops": 1.5}}, "contrast.crops"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        _recipe(changes)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"model": {"args": {**ARGS, "width": 3}}}, RecipeError, "model.args are not a CLIP"),
        ({"model": {"args": {**ARGS, "init_logit_bias": None}}}, RecipeError, "init_logit_bias"),
        ({"data": {"train": "shapes:train?n=64"}}, RecipeError, "give size=32 in the data"),
    ],
)
def test_what_cannot_be_trained(
    changes: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence):
        train(_recipe(changes), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photographs_cannot_be_captioned(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "photos" / name / "1.png")
    photos = str(tmp_path / "photos")
    changes = {"data": {"train": photos, "test": photos}, "batch_size": 2,
               "schedule": {"epochs": 2, "warmup_steps": 0}}  # fmt: skip
    with pytest.raises(DataError, match="contrast learns phrases about drawn images"):
        train(_recipe(changes), out=tmp_path / "out")


def test_the_bench_is_for_classes() -> None:
    with pytest.raises(RecipeError, match="trainings on classes"):
        bench_train(_recipe())
