"""From trained weights to what others use: the self-describing checkpoint and its model card."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from polysem.models.checkpoint import read_checkpoint, save_checkpoint
from polysem.train.build import with_methods
from polysem.train.card import model_card
from polysem.train.evaluate import Evaluation, evaluate, wilson_interval
from polysem.train.outputs import Outputs
from polysem.train.prepare import Job
from polysem.train.recipe import recipe_to_dict
from polysem.train.state import Progressed, check_weights

__all__ = ["TrainResult", "finish", "save_weights"]


@dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    Attributes
    ----------
    path : Path
        The checkpoint of the trained model, for `load_model`.
    metrics : mapping
        ``test_accuracy`` with its 95 % Wilson interval, losses, seconds, versions: what the
        checkpoint and the model card hold.
    """

    path: Path
    metrics: Mapping[str, Any]


def save_weights(
    job: Job, path: Path, *, step: int, metrics: Mapping[str, Any] | None = None
) -> None:
    """Write the weights as they are now, with all that `load_model` needs.

    Raises
    ------
    NonFiniteError
        If a weight is NaN or infinite.
    CheckpointError
        If the file cannot be written.
    """
    check_weights(job.model, step)
    recipe = job.recipe
    save_checkpoint(
        path,
        recipe.model.name,
        {**with_methods(recipe).args, "num_classes": len(job.train.classes)},
        job.model.state_dict(),
        transform=job.transform,
        classes=job.train.classes,
        recipe=recipe_to_dict(recipe),
        metrics=metrics,
        step=step,
        dtype="float16" if recipe.save_as == "float16" else None,
    )


def finish(
    job: Job,
    outputs: Outputs,
    progressed: Progressed,
    last: Mapping[str, Any],
    *,
    command: str | None,
) -> TrainResult:
    """Write checkpoint and card; what they claim is measured on the weights as they are stored."""
    save_weights(job, outputs.model, step=progressed.step)
    job.model.load_state_dict(read_checkpoint(outputs.model).state_dict)
    test = evaluate(job.model, job.test, job.transform, job.loss, precision=job.recipe.precision)
    metrics = _metrics(job, progressed, last, test)
    if job.recipe.data.permute_labels:
        learned = evaluate(
            job.model, job.train, job.transform, job.loss, precision=job.recipe.precision
        )
        metrics["memorised"] = learned.accuracy
    save_weights(job, outputs.model, step=progressed.step, metrics=metrics)
    command = command or "polysem train recipe.yaml --out OUT"
    card = model_card(job.recipe, metrics, classes=job.train.classes, command=command)
    outputs.write_text(outputs.card, card)
    outputs.state.unlink(missing_ok=True)
    return TrainResult(outputs.model, metrics)


def _metrics(
    job: Job, progressed: Progressed, last: Mapping[str, Any], test: Evaluation
) -> dict[str, Any]:
    by_class = [None if math.isnan(share) else float(share) for share in test.class_accuracy]
    device = job.train.labels.device
    return {
        "test_accuracy": test.accuracy,
        "test_accuracy_95": list(wilson_interval(test.n_correct, test.n_images)),
        "test_balanced_accuracy": test.balanced_accuracy,
        "test_calibration_error": test.calibration_error,
        "test_loss": test.loss,
        "test_images": test.n_images,
        "test_class_accuracy": by_class,
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "steps": progressed.step,
        "batch_size": job.recipe.batch_size,
        "parameters": sum(parameter.numel() for parameter in job.model.parameters()),
        "images_per_s": last["images_per_s"],
        "cpu_minutes": progressed.cpu_s / 60,
        "wall_minutes": progressed.wall_s / 60,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("polysem", "torch", "timm")},
        },
        "train_fingerprint": job.train.fingerprint,
        "test_fingerprint": job.test.fingerprint,
    }
