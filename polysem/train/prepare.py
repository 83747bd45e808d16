"""From a recipe to all that the loop needs: data in memory, model, loss, optimiser, settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import nn

from polysem.data.dataset import ImageData
from polysem.data.sources import load_data
from polysem.errors import DataError, RecipeError, SpecError
from polysem.models.registry import require_known
from polysem.models.transform import Transform
from polysem.processes import Processes
from polysem.train.build import (
    build_model,
    choose_average,
    choose_clip,
    choose_loss,
    choose_memory_format,
    choose_optimiser,
    follow_steps,
    give_strengths_a_rate,
    with_methods,
)
from polysem.train.captioned import caption_truth
from polysem.train.contrast import build_clip
from polysem.train.hold import hold
from polysem.train.images import ImageSet
from polysem.train.losses import Loss
from polysem.train.order import generator_for
from polysem.train.recipe import Recipe
from polysem.train.schedules import cosine_schedule
from polysem.train.start import check_conversion, start_weights, with_start

__all__ = ["Job", "prepare", "settings"]


@dataclass(frozen=True)
class Job:
    """A training, ready to run.

    Attributes
    ----------
    recipe : Recipe
    model : nn.Module
        Untrained, on the device, in training mode.
    network : nn.Module
        The same weights as the loop calls them: compiled, shared between processes.
    average : ModelEmaV3 or None
        timm's moving average of the weights.
    memory_format : torch.memory_format
        How the network takes images; channels last for CNNs on a GPU.
    transform : Transform
        What the model does to its images.
    loss : Loss
    optimiser : Optimizer
    follow : callable
        Called with the number of each step before it; sets what changes by step.
    clip : callable
        Applied between backward pass and step.
    train, test : ImageSet
    epoch_steps, total_steps : int
        Steps per epoch and in all.
    group : Processes
        Who trains together.
    """

    recipe: Recipe
    model: nn.Module
    network: nn.Module
    average: ModelEmaV3 | None
    memory_format: torch.memory_format
    transform: Transform
    loss: Loss
    optimiser: torch.optim.Optimizer
    follow: Callable[[int], None]
    clip: Callable[[], object]
    train: ImageSet
    test: ImageSet
    epoch_steps: int
    total_steps: int
    group: Processes


def prepare(recipe: Recipe, group: Processes, *, report: Callable[[str, int, int], None]) -> Job:
    """Check that everything fits together, then read the images and build the model.

    Parameters
    ----------
    recipe : Recipe
    group : Processes
    report : callable
        Called as ``report(spec, images read, images in all)`` while images are read.

    Raises
    ------
    RecipeError
        If the model cannot be built, or the schedule does not fit the data.
    DataError
        If the data has no labels, or its two parts have different classes.
    """
    recipe = with_start(recipe)
    contrasts = recipe.contrast is not None
    if not contrasts:
        _known_model(recipe)
    elif group.count > 1:
        raise RecipeError("contrast compares all images of a step: it trains in one process")
    network = with_methods(recipe)
    train = load_data(recipe.data.train, limit=recipe.data.train_limit)
    test = load_data(recipe.data.test, limit=recipe.data.test_limit)
    classes = _classes(train, test)
    epoch_steps, total_steps = _lengths(recipe, len(train))
    _check_parts(recipe, len(train), group.count)
    torch.manual_seed(recipe.seed)
    if contrasts:
        model, transform = build_clip(recipe.model)
    else:
        model = build_model(network, n_classes=len(classes))
        check_conversion(recipe, model, total_steps)
        transform = start_weights(recipe, model)
    # of two towers the convolutions take the time, and they are faster so, on a CPU as well
    last = torch.channels_last
    memory_format = last if contrasts else choose_memory_format(model, group.device)
    model.to(group.device).to(memory_format=memory_format).train()  # type: ignore[call-overload]
    optimiser = choose_optimiser(recipe.optimiser, model)
    give_strengths_a_rate(optimiser, model, recipe.attention.lr if recipe.attention else None)
    schedule = cosine_schedule(
        optimiser,
        total_steps=total_steps,
        warmup_steps=recipe.schedule.warmup_steps,
        final_lr=recipe.schedule.final_lr,
    )
    learned, tested = (
        caption_truth(data, transform, device=group.device, report=report)
        if contrasts
        else hold(data, transform, recipe, group, classes=classes, report=report, training=training)
        for data, training in ((train, True), (test, False))
    )
    average = choose_average(recipe, model)
    job = Job(
        recipe=recipe,
        model=model,
        network=group.share(_compiled(model) if recipe.compile else model),
        average=average,
        memory_format=memory_format,
        transform=transform,
        loss=choose_loss(recipe, model),
        optimiser=optimiser,
        follow=follow_steps(recipe, model, schedule, total_steps=total_steps, average=average),
        clip=choose_clip(recipe.optimiser.clip, model),
        train=learned,
        test=tested,
        epoch_steps=epoch_steps,
        total_steps=total_steps,
        group=group,
    )
    if group.number:  # what dropout leaves out differs from process to process
        torch.manual_seed(generator_for(recipe.seed, "process", group.number).initial_seed())
    return job


def _compiled(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return compiled


def _check_parts(recipe: Recipe, n_images: int, n_processes: int) -> None:
    """Refuse steps that do not divide into what each process shows at a time."""
    n_parts, n_shown = n_processes * recipe.accumulate, min(recipe.batch_size, n_images)
    if n_parts > n_shown:
        raise RecipeError(
            f"a step of {n_shown} images does not divide into {n_parts} parts ({n_processes} "
            f"processes, accumulate {recipe.accumulate}); raise batch_size or lower accumulate"
        )
    if recipe.augment.mixup and n_shown % (2 * n_parts):
        raise RecipeError(
            f"augment.mixup mixes pairs: a step's {n_shown} images must divide by {2 * n_parts} "
            f"(2 × {n_processes} processes × accumulate {recipe.accumulate}); change batch_size"
        )


def _known_model(recipe: Recipe) -> None:
    try:
        require_known(recipe.model.name)
    except SpecError as error:
        raise RecipeError(f"model.name: {error}") from None


def _classes(train: ImageData, test: ImageData) -> tuple[str, ...]:
    for data in (train, test):
        if data.labels is None:
            raise DataError(f"{data.name} has no labels; training needs them")
        if not len(data):
            raise DataError(f"{data.name} has no images")
    if train.classes != test.classes:
        raise DataError(
            f"{train.name} and {test.name} have different classes: {train.classes} and "
            f"{test.classes}"
        )
    if train.classes is not None:
        return train.classes
    assert train.labels is not None
    assert test.labels is not None
    return tuple(map(str, range(int(max(train.labels.max(), test.labels.max())) + 1)))


def _lengths(recipe: Recipe, n_images: int) -> tuple[int, int]:
    """Return steps per epoch (the last, smaller batch is left out) and steps in all."""
    epoch_steps = max(1, n_images // recipe.batch_size)
    schedule = recipe.schedule
    total_steps = schedule.steps or (schedule.epochs or 0) * epoch_steps
    if schedule.warmup_steps >= total_steps:
        raise RecipeError(
            f"schedule.warmup_steps is {schedule.warmup_steps}, but the training has only "
            f"{total_steps} steps ({epoch_steps} an epoch)"
        )
    return epoch_steps, total_steps


@contextmanager
def settings(threads: int | None) -> Iterator[None]:
    """Train with this many threads and in a way that repeats, then put torch back as it was.

    Some sums on several threads are otherwise added up in an order that changes from run to run.
    Where torch knows no repeatable way (some kernels on a GPU) it takes the usual one.
    """
    n_threads = torch.get_num_threads()
    repeatable = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.set_num_threads(threads or n_threads)
            yield
        finally:
            torch.set_num_threads(n_threads)
            torch.use_deterministic_algorithms(repeatable, warn_only=warn_only)
