"""From a recipe to a folder with a trained model: the training loop.

::

    OUT/recipe.yaml        what was followed
    OUT/log.jsonl          one line an epoch
    OUT/snapshots/         weights on the way, from untrained to trained
    OUT/state.pt           where an interrupted training goes on; gone when it has finished
    OUT/model.safetensors  the trained model, for `load_model`
    OUT/README.md          its model card
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from polysem.device import choose_device
from polysem.errors import NonFiniteError
from polysem.interrupt import interrupt_flag
from polysem.models.checkpoint import read_checkpoint
from polysem.train.augment import augment
from polysem.train.evaluate import autocast, evaluate
from polysem.train.finish import TrainResult, finish, save_weights
from polysem.train.images import generator_for
from polysem.train.outputs import Outputs
from polysem.train.prepare import Job, prepare, settings
from polysem.train.recipe import Recipe
from polysem.train.schedules import log_spaced_steps
from polysem.train.start import with_start
from polysem.train.state import Progressed, check_same_training, load_state, save_state
from polysem.train.tally import Tally

__all__ = ["Progress", "TrainResult", "train"]


@dataclass(frozen=True)
class Progress:
    """What a caller is told while it waits.

    Attributes
    ----------
    stage : str
        What is being done: "train", or the spec of the images being read.
    done, total : int
        Steps of the training, or images.
    loss, lr : float
        Of the last step; NaN while images are read.
    record : mapping or None
        The line that was just added to the log, at the end of an epoch.
    """

    stage: str
    done: int
    total: int
    loss: float = math.nan
    lr: float = math.nan
    record: Mapping[str, Any] | None = None


def train(
    recipe: Recipe,
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    command: str | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainResult:
    """Train a model as the recipe says and write everything to one folder.

    The same recipe gives the same weights, to the bit, on the same machine with the same number of
    threads (on a GPU: as far as its kernels allow), interrupted and resumed or not. Ctrl-C is
    heeded between two steps, when the state to resume from has been written.

    Parameters
    ----------
    recipe : Recipe
        From `load_recipe`.
    out : path
        The folder; must not exist or be empty, unless the training is resumed or overwritten.
    resume : bool
        Go on from ``state.pt``, with the same recipe.
    overwrite : bool
        Start anew where an earlier training wrote.
    device : str
        "auto" (a GPU if there is one), "cpu", "cuda", ….
    command : str, optional
        What the model card gives as the command that trains the model again.
    on_progress : callable
        Called with a `Progress` after every step, and now and then while images are read.

    Returns
    -------
    TrainResult
        Where the model is, and its metrics.

    Raises
    ------
    RunError
        If the folder is in the way, or a training in it cannot be resumed with this recipe.
    MissingError
        If there is nothing to resume.
    RecipeError, SpecError, DataError
        If recipe and data do not fit together.
    NonFiniteError
        If loss or weights become NaN or infinite; the last good state is kept.
    KeyboardInterrupt
        After Ctrl-C; says how to resume.
    """
    outputs = Outputs(Path(out).expanduser())
    outputs.check(resume=resume, overwrite=overwrite)
    recipe = with_start(recipe)
    if resume and not outputs.state.exists():
        return _finished_before(outputs, recipe)
    clock = _Clock()
    with settings(recipe.threads):
        job = prepare(
            recipe,
            choose_device(device),
            report=lambda spec, done, total: on_progress(Progress(spec, done, total)),
        )
        progressed = _resume(job, outputs) if resume else _start(job, outputs)
        clock.add(progressed)
        last = _run(job, outputs, progressed, clock, on_progress)
        return finish(job, outputs, progressed, last, command=command)


def _finished_before(outputs: Outputs, recipe: Recipe) -> TrainResult:
    checkpoint = read_checkpoint(outputs.model)
    check_same_training(checkpoint.recipe or {}, recipe, outputs.model)
    return TrainResult(outputs.model, checkpoint.metrics or {})


def _start(job: Job, outputs: Outputs) -> Progressed:
    outputs.start(job.recipe)
    progressed = Progressed()
    _save_state(job, outputs, progressed)
    return progressed


def _resume(job: Job, outputs: Outputs) -> Progressed:
    state = load_state(outputs.state, job.recipe, job.train.fingerprint)
    job.model.load_state_dict(state.model)
    job.optimiser.load_state_dict(state.optimiser)
    torch.set_rng_state(state.cpu_rng)
    if state.cuda_rng is not None:
        torch.cuda.set_rng_state(state.cuda_rng)
    progressed = Progressed(**state.progressed)
    outputs.rewind_log(progressed.step)
    return progressed


def _save_state(job: Job, outputs: Outputs, progressed: Progressed) -> None:
    save_state(
        outputs.state, job.recipe, job.train.fingerprint, job.model, job.optimiser, progressed
    )


@dataclass
class _Clock:
    """Seconds by the clock and of all CPU cores since the training, or its resumption, began."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def add(self, progressed: Progressed) -> None:
        """Add the seconds since the last call."""
        wall, cpu = time.perf_counter(), time.process_time()
        progressed.wall_s += wall - self.wall
        progressed.cpu_s += cpu - self.cpu
        self.wall, self.cpu = wall, cpu


def _run(
    job: Job,
    outputs: Outputs,
    progressed: Progressed,
    clock: _Clock,
    on_progress: Callable[[Progress], None],
) -> Mapping[str, Any]:
    """Take all steps that are left; return the last line of the log."""
    record: Mapping[str, Any] = {}
    saved_at = progressed.step
    snapshots = log_spaced_steps(job.total_steps, job.recipe.snapshots)
    if progressed.step == 0 and 0 in snapshots:
        save_weights(job, outputs.snapshot(0), step=0)
    tally = Tally(read_every=1 if job.train.labels.device.type == "cpu" else 20)
    try:
        with interrupt_flag() as interrupted:
            while progressed.step < job.total_steps:
                lr = _step(job, progressed, tally)
                step = progressed.step
                ends_epoch = step % job.epoch_steps == 0 or step == job.total_steps
                saves = step % job.recipe.checkpoint_every == 0 or interrupted()
                tally.read(progressed, now=ends_epoch or saves or step in snapshots)
                clock.add(progressed)
                if ends_epoch:
                    record = _end_epoch(job, outputs, progressed, clock, lr)
                if step in snapshots:
                    save_weights(job, outputs.snapshot(step), step=step)
                if saves:
                    _save_state(job, outputs, progressed)
                    saved_at = step
                ended = record if ends_epoch else None
                on_progress(Progress("train", step, job.total_steps, tally.loss, lr, ended))
                if interrupted() and step < job.total_steps:
                    _save_state(job, outputs, progressed)
                    raise KeyboardInterrupt(
                        f"stopped after step {step:,} of {job.total_steps:,}; "
                        f"resume the training in {outputs.folder} to go on from there"
                    )
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error}; the last good state, after step {saved_at}, is kept in {outputs.state}. "
            "Lower optimiser.lr or set optimiser.clip, and start anew"
        ) from None
    return record or outputs.last_record()


def _step(job: Job, progressed: Progressed, tally: Tally) -> float:
    """Show one batch and change the weights once; return the learning rate it was done with."""
    recipe, step = job.recipe, progressed.step
    epoch, place = divmod(step, job.epoch_steps)
    began = time.perf_counter()
    order = tally.order(recipe.seed, epoch, len(job.train))
    chosen = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
    chosen = chosen.to(job.train.labels.device)
    images = augment(
        job.train.pixels[chosen], recipe.augment, generator_for(recipe.seed, "augment", step)
    )
    labels = job.train.labels[chosen]
    job.follow(step)
    lr = float(job.optimiser.param_groups[0]["lr"])
    with autocast(images.device, recipe.precision):
        logits = job.model(job.transform.normalize(images))
    loss = job.loss(logits, labels, training=True)
    job.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    job.clip()
    job.optimiser.step()
    tally.add(step, lr, loss.detach(), (logits.detach().argmax(1) == labels).sum(), len(labels))
    progressed.step += 1
    progressed.train_s += time.perf_counter() - began
    return lr


def _end_epoch(
    job: Job, outputs: Outputs, progressed: Progressed, clock: _Clock, lr: float
) -> Mapping[str, Any]:
    test = evaluate(job.model, job.test, job.transform, job.loss, precision=job.recipe.precision)
    clock.add(progressed)
    record = {
        "step": progressed.step,
        "epoch": progressed.step / job.epoch_steps,
        "lr": lr,
        "train_loss": progressed.loss_sum / progressed.n_seen,
        "train_accuracy": progressed.n_correct / progressed.n_seen,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_balanced_accuracy": test.balanced_accuracy,
        "test_calibration_error": test.calibration_error,
        "images_per_s": progressed.n_seen / progressed.train_s,
        "cpu_s": progressed.cpu_s,
        "wall_s": progressed.wall_s,
    }
    outputs.add_to_log(record)
    progressed.next_epoch()
    return record
