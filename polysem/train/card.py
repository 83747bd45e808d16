"""From a finished training to the README beside its model: what it is, how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from polysem.train.recipe import Recipe, recipe_to_dict

__all__ = ["model_card"]

_LOWEST = 10


def model_card(
    recipe: Recipe, metrics: Mapping[str, Any], *, classes: Sequence[str], command: str
) -> str:
    """Return the model card as Markdown.

    Parameters
    ----------
    recipe : Recipe
    metrics : mapping
        As `loop.train` returns them.
    classes : sequence of str
        Names of the classes, in the order of the logits.
    command : str
        What trains the model again.
    """
    about = _of_classes if recipe.contrast is None else _of_phrases
    return f"""# {recipe.model.name}, trained on {recipe.data.train}

{_notes(recipe)}{about(recipe, metrics, classes)}
## How it was made

    {command}

Seed {recipe.seed}; {metrics["parameters"]:,} parameters; {metrics["steps"]:,} steps of \
{metrics["batch_size"]} images; {metrics["cpu_minutes"]:.1f} CPU minutes, \
{metrics["wall_minutes"]:.1f} minutes by the clock with {_workforce(metrics)} on \
{metrics["device"]}, reading the images included.

Versions: {", ".join(f"{name} {version}" for name, version in metrics["versions"].items())}.

Training data: `{recipe.data.train}`, fingerprint `{metrics["train_fingerprint"]}`.
Test data: `{recipe.data.test}`, fingerprint `{metrics["test_fingerprint"]}`.

The recipe:

```yaml
{yaml.safe_dump(_without_notes(recipe), sort_keys=False).strip()}
```
"""


def _of_classes(recipe: Recipe, metrics: Mapping[str, Any], classes: Sequence[str]) -> str:
    low, high = (100 * bound for bound in metrics["test_accuracy_95"])
    by_class = "\n".join(
        f"| {name} | {'no test image' if share is None else f'{100 * share:.1f} %'} |"
        for name, share in zip(classes, metrics["test_class_accuracy"], strict=True)
    )
    return f"""**Test accuracy {100 * metrics["test_accuracy"]:.2f} %** (95 % Wilson interval \
{low:.2f} to {high:.2f} %; {metrics["test_images"]:,} images of `{recipe.data.test}`; \
test loss {metrics["test_loss"]:.4f}), measured on the weights as they are in the file, \
{recipe.save_as}. Balanced accuracy {100 * metrics["test_balanced_accuracy"]:.2f} %; expected \
calibration error {100 * metrics["test_calibration_error"]:.2f} % (15 bins).
{_average(metrics)}{_by_heart(metrics)}
| Class | Recognised |
|---|---|
{by_class}
"""


def _of_phrases(recipe: Recipe, metrics: Mapping[str, Any], _classes: Sequence[str]) -> str:
    found = {name: a for name, a in metrics["test_concept_auroc"].items() if a is not None}
    lowest = sorted(found.items(), key=lambda item: item[1])[:_LOWEST]
    rows = "\n".join(f"| {name} | {auroc:.4f} |" for name, auroc in lowest)
    return f"""**Zero-shot AUROC {metrics["test_auroc"]:.4f}** (median over {len(found)} concepts; \
a tenth of them have {metrics["test_auroc_lowest_tenth"]:.4f} or less): how often an image that \
shows a concept fits its words better than one that does not; 0.5 is chance. Of \
{100 * metrics["test_accuracy"]:.2f} % of the images the concept that fits best is true. \
{metrics["test_images"]:,} images of `{recipe.data.test}`; test loss {metrics["test_loss"]:.4f}; \
measured on the weights as they are in the file, {recipe.save_as}.

| The {len(lowest)} lowest | AUROC |
|---|---|
{rows}

The folder is open_clip's own: `open_clip.create_model_and_transforms("local-dir:FOLDER")`, or \
`polysem describe-neurons RUN --clip FOLDER`.
"""


def _workforce(metrics: Mapping[str, Any]) -> str:
    threads = f"{metrics['threads']} thread{'s' if metrics['threads'] > 1 else ''}"
    several = metrics.get("processes", 1)
    return threads if several == 1 else f"{several} processes of {threads}"


def _average(metrics: Mapping[str, Any]) -> str:
    if "average_test_accuracy" not in metrics:
        return ""
    share = 100 * metrics["average_test_accuracy"]
    return f"The moving average of the weights, average.safetensors: {share:.2f} %.\n"


def _by_heart(metrics: Mapping[str, Any]) -> str:
    if metrics.get("memorised") is None:
        return ""
    return (
        "\nThe labels of the training images were permuted: what they show does not tell their "
        f"label. The model learned {100 * metrics['memorised']:.2f} % of them by heart; its test "
        "accuracy is that of chance, as it should be.\n"
    )


def _notes(recipe: Recipe) -> str:
    notes = recipe.notes.strip()
    return f"{notes}\n\n" if notes else ""


def _without_notes(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe_to_dict(recipe).items() if key != "notes"}
