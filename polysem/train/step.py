"""One step: from the uint8 images of a step to weights that have changed once."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice, tee

from torch import Tensor

from polysem.train.augment import augment_part, mix
from polysem.train.captioned import Captioned
from polysem.train.contrast import learn_phrases
from polysem.train.evaluate import autocast
from polysem.train.order import Part, balanced_order, epoch_order, parts
from polysem.train.prepare import Job

__all__ = ["Showing", "Stepped", "Watch", "shown", "take_step"]

Showing = tuple[Part, Tensor]
"""Some images of a step: which ones, and their pixels, uint8 [image, channel, y, x]."""

Watch = Callable[[str], None]
"""Called with the name of what has just been done, by whoever measures."""


@dataclass(frozen=True)
class Stepped:
    """What a step gave in this process.

    Attributes
    ----------
    lr : float
        The learning rate it was taken with.
    loss : Tensor
        This process's part of the mean loss over the images of the step.
    n_correct : Tensor
        How many of its images were recognised; of a mixed image the class of the larger share
        counts. Of two towers: of how many images the best phrase is true.
    """

    lr: float
    loss: Tensor
    n_correct: Tensor


def shown(job: Job, first_step: int) -> Generator[list[Showing], None, None]:
    """Yield what this process shows in each step from `first_step` to the last."""
    recipe = job.recipe
    labels = job.train.labels.cpu()

    def order(epoch: int) -> Tensor:
        if recipe.data.sampling == "balanced":
            return balanced_order(recipe.seed, epoch, labels)
        return epoch_order(recipe.seed, epoch, len(labels))

    upcoming, ahead = tee(
        parts(
            order,
            steps=range(first_step, job.total_steps),
            epoch_steps=job.epoch_steps,
            batch_size=recipe.batch_size,
            process=job.group.number,
            n_processes=job.group.count,
            accumulate=recipe.accumulate,
        )
    )
    showings = zip(upcoming, job.train.batches(ahead), strict=True)
    while step := list(islice(showings, recipe.accumulate)):
        yield step


def take_step(job: Job, showings: list[Showing], watch: Watch = lambda done: None) -> Stepped:
    """Show the images of a step and change the weights once.

    Parameters
    ----------
    job : Job
    showings : list of (Part, Tensor)
        From `shown`.
    watch : callable, optional
        Told after each part of the work what it was.
    """
    step = showings[0][0].step
    job.follow(step)
    lr = float(job.optimiser.param_groups[0]["lr"])
    job.optimiser.zero_grad(set_to_none=True)
    watch("schedule")
    losses, hits = [], []
    for number, (part, pixels) in enumerate(showings, start=1):
        waits = number < len(showings)  # gradients meet those of other processes once a step
        with job.group.apart(job.network) if waits else nullcontext():
            loss, n_correct = _learn(job, part, pixels, watch)
        losses.append(loss)
        hits.append(n_correct)
    job.clip()
    watch("clip")
    job.optimiser.step()
    watch("optimiser")
    if job.average is not None:
        job.average.update(job.model, step=step)
        watch("moving average")
    return Stepped(lr, sum(losses[1:], losses[0]), sum(hits[1:], hits[0]))


def _learn(job: Job, part: Part, pixels: Tensor, watch: Watch) -> tuple[Tensor, Tensor]:
    """Add the gradients of one part to the weights'; return its share of the loss, and its hits."""
    recipe = job.recipe
    if isinstance(job.train, Captioned):
        return _match(job, job.train, part, pixels, watch)
    labels = job.train.labels[part.indices.to(pixels.device)]
    changed = augment_part(pixels, recipe.augment, part, recipe.seed)
    watch("augment")
    images, targets = job.transform.normalize(changed), labels
    if recipe.augment.mixup:
        alpha, n_classes = recipe.augment.mixup, len(job.train.classes)
        images, targets = mix(images, labels, alpha, part, seed=recipe.seed, n_classes=n_classes)
    images = images.contiguous(memory_format=job.memory_format)
    watch("normalise")
    with autocast(images.device, recipe.precision):
        logits = job.network(images)
    loss = job.loss(logits, targets, training=True)
    watch("forward")
    share = len(part) / part.total
    if share < 1:  # processes average their gradients, parts add theirs up
        loss = loss * share
    job.group.backward(loss)
    watch("backward")
    answers = targets.argmax(1) if targets.ndim == 2 else targets
    return loss.detach(), (logits.detach().argmax(1) == answers).sum()


def _match(
    job: Job, images: Captioned, part: Part, pixels: Tensor, watch: Watch
) -> tuple[Tensor, Tensor]:
    """Do for two towers what `_learn` does for one; a step is one part here."""
    loss, n_correct = learn_phrases(job.recipe, images, job.transform, job.network, part, pixels)
    watch("forward")
    job.group.backward(loss)
    watch("backward")
    return loss.detach(), n_correct
