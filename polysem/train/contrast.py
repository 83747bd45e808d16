"""Two towers that learn which phrases are true of which images: how a CLIP model is made.

SigLIP's loss, a yes or no for every pair, but with the truth about every pair: drawn images say
what they show, so that no phrase counts as false of an image merely because another gave it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polysem.data.captions import phrases_about, true_of, vocabulary, words
from polysem.errors import NonFiniteError, RecipeError
from polysem.models.clip import CONFIG, open_clip_transform, quiet_open_clip
from polysem.models.transform import Transform
from polysem.train.captioned import Captioned, Seen, cut, random_boxes, whole
from polysem.train.evaluate import autocast, wilson_interval
from polysem.train.order import Part, generator_for
from polysem.train.recipe import Model, Recipe

__all__ = [
    "Matching", "build_clip", "learn_phrases", "match_phrases", "sigmoid_loss",
    "write_config",
]  # fmt: skip


def build_clip(recipe: Model) -> tuple[nn.Module, Transform]:
    """Build two untrained towers, weights drawn from torch's global generator, and the transform.

    Raises
    ------
    RecipeError
        If open_clip does not take the arguments, or the towers give no sigmoid loss.
    """
    import open_clip

    try:
        with quiet_open_clip():
            model: nn.Module = open_clip.CLIP(**recipe.args, output_dict=True)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(
            f"model.args are not a CLIP model's (embed_dim, vision_cfg, text_cfg, …): {reason}"
        ) from None
    if getattr(model, "logit_bias", None) is None:
        raise RecipeError("model.args lacks init_logit_bias, which a sigmoid loss needs, as in -4")
    return model, open_clip_transform(_preprocess(recipe.args))


def _preprocess(args: Mapping[str, Any]) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg

    plain = PreprocessCfg(size=args["vision_cfg"].get("image_size", 224))
    return {
        "size": plain.size,
        "mean": list(plain.mean),
        "std": list(plain.std),
        "interpolation": plain.interpolation,
    }


def write_config(folder: Path, recipe: Recipe) -> None:
    """Write what open_clip builds the towers from, and on which data they were trained."""
    said = {
        "model_cfg": recipe.model.args,
        "preprocess_cfg": _preprocess(recipe.model.args),
        "polysem": {"trained_on": recipe.data.train},
    }
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def sigmoid_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Return the mean over images of Σ over phrases of −log σ(±logit), + where the phrase is true.

    Parameters
    ----------
    logits : Tensor [image, phrase]
    truth : bool Tensor [image, phrase]
    known : bool Tensor [image, phrase]
        Pairs that count.

    References
    ----------
    Zhai et al. 2023, SigLIP, arXiv 2303.15343; there only phrase i is true of image i.
    """
    losses = -F.logsigmoid(torch.where(truth, logits, -logits).float())
    return (losses * known).sum() / len(logits)


def learn_phrases(
    recipe: Recipe,
    images: Captioned,
    transform: Transform,
    network: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    part: Part,
    pixels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the loss of a step's images and phrases, and how many images are matched rightly.

    An image is, if the phrase that fits it best by the network is true of it.

    Parameters
    ----------
    recipe : Recipe
        Of a contrastive training.
    images : Captioned
    transform : Transform
    network : callable
        open_clip's, from images and tokens to features, scale and bias.
    part : Part
        The step's images.
    pixels : uint8 Tensor [image, channel, y, x]
        As they are stored.
    """
    assert recipe.contrast is not None
    draws = generator_for(recipe.seed, "views", part.step)
    chosen = part.indices.to(pixels.device)
    owners = images.owners[chosen]
    seen = whole(images.things[chosen], images.background[chosen])
    boxes = random_boxes(owners, recipe.contrast.crops, draws)
    views, seen = cut(pixels, owners, seen, boxes)
    if recipe.augment.flip:  # no phrase tells left from right
        mirrored = torch.rand(len(views), generator=draws).to(views.device) < 0.5
        views = torch.where(mirrored[:, None, None, None], views.flip(-1), views)
    rng = np.random.default_rng(generator_for(recipe.seed, "phrases", part.step).initial_seed())
    phrases = _phrases(seen, recipe.contrast.phrases, rng)
    tokens = _tokens([words(phrase, rng) for phrase in phrases], recipe).to(views.device)
    truth, known = _truth(torch.from_numpy(phrases).to(views.device), seen)
    with autocast(views.device, recipe.precision):
        logits = _logits(network(transform.normalize(views), tokens))
    right = truth.gather(1, logits.detach().argmax(1, keepdim=True))
    return sigmoid_loss(logits, truth, known), right.sum()


def _phrases(seen: Seen, number: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    things, background = seen.things.cpu().numpy(), seen.possible_background.cpu().numpy()
    return np.concatenate([phrases_about(things, background, rng) for _ in range(number)])


def _truth(phrases: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """Return which phrases are true of which views, and of which pairs that is known."""
    surely = true_of(phrases, seen.things, seen.background)
    return surely, surely == true_of(phrases, seen.possible_things, seen.possible_background)


def _tokens(texts: list[str], recipe: Recipe) -> Tensor:
    import open_clip

    context = recipe.model.args["text_cfg"].get("context_length", 77)
    tokens: Tensor = open_clip.tokenize(texts, context_length=context)
    return tokens


def _logits(found: Mapping[str, Tensor]) -> Tensor:
    likeness = found["image_features"] @ found["text_features"].T
    return found["logit_scale"] * likeness + found["logit_bias"]


@dataclass(frozen=True)
class Matching:
    """How well two towers know which concepts test images show.

    Attributes
    ----------
    loss : float
        Of all concepts on whole images.
    n_correct, n_images : int
        Images of which the concept that fits best by the model is true.
    concepts : tuple of str
    auroc : float64 array [concept]
        Probability that an image which shows the concept fits it better than one that does not;
        NaN where all images or none show it.
    """

    loss: float
    n_correct: int
    n_images: int
    concepts: tuple[str, ...]
    auroc: npt.NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        """Share of images matched rightly, from 0 to 1 (best)."""
        return self.n_correct / self.n_images

    def record(self) -> dict[str, Any]:
        """Return what the log says of it."""
        return {
            "test_loss": self.loss,
            "test_accuracy": self.accuracy,
            "test_auroc": float(np.nanmedian(self.auroc)),
            "test_auroc_lowest_tenth": float(np.nanquantile(self.auroc, 0.1)),
        }

    def metrics(self) -> dict[str, Any]:
        """Return what checkpoint and card say of it."""
        by_concept = zip(self.concepts, self.auroc.tolist(), strict=True)
        return {
            **self.record(),
            "test_accuracy_95": list(wilson_interval(self.n_correct, self.n_images)),
            "test_images": self.n_images,
            "test_concept_auroc": {c: None if math.isnan(a) else a for c, a in by_concept},
        }


@torch.inference_mode()
def match_phrases(
    model: Any,
    images: Captioned,
    transform: Transform,
    recipe: Recipe,
    *,
    batch_size: int = 256,
) -> Matching:
    """Test two towers on whole images and the plain words of every concept; mode is put back.

    Raises
    ------
    NonFiniteError
        If the loss is NaN or infinite.
    """
    from sklearn.metrics import roc_auc_score

    phrases = vocabulary()
    concepts = tuple(words(phrase) for phrase in phrases)
    was_training = model.training
    model.eval()
    try:
        tokens = _tokens(list(concepts), recipe).to(images.labels.device)
        texts = model.encode_text(tokens, normalize=True).float()
        logits = torch.cat([
            model.logit_scale.exp()
            * model.encode_image(transform.normalize(pixels), normalize=True).float()
            @ texts.T
            + model.logit_bias
            for pixels in images.pixels.split(batch_size)
        ])  # fmt: skip
    finally:
        model.train(was_training)
    seen = whole(images.things, images.background)
    truth, known = _truth(torch.from_numpy(phrases).to(logits.device), seen)
    loss = float(sigmoid_loss(logits, truth, known))
    if not math.isfinite(loss):
        raise NonFiniteError(f"the test loss on {images.name} is {loss}")
    shown, scores = truth.cpu().numpy(), logits.cpu().numpy()
    varies = shown.any(0) & ~shown.all(0)
    auroc = np.full(len(concepts), np.nan)
    auroc[varies] = roc_auc_score(shown[:, varies], scores[:, varies], average=None)
    right = truth.gather(1, logits.argmax(1, keepdim=True))
    return Matching(loss, int(right.sum()), len(images), concepts, auroc)
