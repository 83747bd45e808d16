"""From trained weights to what others use: the self-describing checkpoint and its model card."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polysem.models.checkpoint import read_checkpoint, save_checkpoint
from polysem.train.build import with_methods
from polysem.train.captioned import Captioned
from polysem.train.card import model_card
from polysem.train.contrast import Matching, match_phrases, write_config
from polysem.train.curves import draw_curves
from polysem.train.evaluate import Evaluation, evaluate
from polysem.train.outputs import Outputs
from polysem.train.prepare import Job
from polysem.train.recipe import recipe_to_dict
from polysem.train.state import Progressed, check_weights

__all__ = ["TrainResult", "evaluate_job", "finish", "save_weights"]


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
    job: Job,
    path: Path,
    *,
    step: int,
    metrics: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
) -> None:
    """Write the weights as they are now, with all that `load_model` needs; the first process does.

    Parameters
    ----------
    job : Job
    path : Path
    step : int
        Steps taken.
    metrics : mapping, optional
    model : nn.Module, optional
        Whose weights, the job's model's unless given.

    Raises
    ------
    NonFiniteError
        If a weight is NaN or infinite.
    CheckpointError
        If the file cannot be written.
    """
    model = job.model if model is None else model
    check_weights(model, step)
    if not job.group.first:
        return
    recipe, classes = job.recipe, job.train.classes
    args = {**with_methods(recipe).args, "num_classes": len(classes)}
    if recipe.contrast is not None:
        write_config(path.parent, recipe)
        args = recipe.model.args
    save_checkpoint(
        path,
        recipe.model.name,
        args,
        model.state_dict(),
        transform=job.transform,
        classes=None if recipe.contrast is not None else classes,
        recipe=recipe_to_dict(recipe),
        metrics=metrics,
        step=step,
        dtype="float16" if recipe.save_as == "float16" else None,
    )


def evaluate_job(job: Job, model: nn.Module) -> Evaluation | Matching:
    """Test a model, or its average, as the recipe says, with all processes."""
    if isinstance(job.test, Captioned):
        return match_phrases(model, job.test, job.transform, job.recipe)
    return evaluate(
        model,
        job.test,
        job.transform,
        job.loss,
        precision=job.recipe.precision,
        group=job.group,
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
    test = _stored(job, outputs.model, job.model, progressed.step)
    metrics = _metrics(job, progressed, last, test)
    if job.recipe.data.permute_labels:
        learned = evaluate(
            job.model,
            job.train,
            job.transform,
            job.loss,
            precision=job.recipe.precision,
            group=job.group,
        )
        metrics["memorised"] = learned.accuracy
    if job.average is not None:
        averaged = _stored(job, outputs.average, job.average.module, progressed.step)
        metrics["average_test_accuracy"] = averaged.accuracy
        own = {**metrics, **averaged.metrics()}
        save_weights(
            job, outputs.average, step=progressed.step, metrics=own, model=job.average.module
        )
    save_weights(job, outputs.model, step=progressed.step, metrics=metrics)
    if job.group.first:
        draw_curves(outputs.records(), outputs.curves, title=job.recipe.model.name)
        command = command or "polysem train recipe.yaml --out OUT"
        card = model_card(job.recipe, metrics, classes=job.train.classes, command=command)
        outputs.write_text(outputs.card, card)
        outputs.state.unlink(missing_ok=True)
    job.group.wait()
    return TrainResult(outputs.model, metrics)


def _stored(job: Job, path: Path, model: nn.Module, step: int) -> Evaluation | Matching:
    """Write weights, take them back as the file has them, and test those."""
    save_weights(job, path, step=step, model=model)
    job.group.wait()
    model.load_state_dict(read_checkpoint(path).state_dict)
    return evaluate_job(job, model)


def _metrics(
    job: Job, progressed: Progressed, last: Mapping[str, Any], test: Evaluation | Matching
) -> dict[str, Any]:
    device = job.train.labels.device
    return {
        **test.metrics(),
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "steps": progressed.step,
        "batch_size": job.recipe.batch_size,
        "parameters": sum(parameter.numel() for parameter in job.model.parameters()),
        "images_per_s": last["images_per_s"],
        "cpu_minutes": progressed.cpu_s / 60,
        "wall_minutes": progressed.wall_s / 60,
        "threads": torch.get_num_threads(),
        "processes": job.group.count,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _packages(job)},
        },
        "train_fingerprint": job.train.fingerprint,
        "test_fingerprint": job.test.fingerprint,
    }


def _packages(job: Job) -> tuple[str, ...]:
    towers = () if job.recipe.contrast is None else ("open_clip_torch",)
    return ("polysem", "torch", "timm", *towers)
