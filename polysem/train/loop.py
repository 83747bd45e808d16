"""From a recipe to a folder with a trained model: the training loop.

::

    OUT/recipe.yaml        what was followed
    OUT/log.jsonl          one line an epoch
    OUT/curves.png         the same, drawn
    OUT/snapshots/         weights on the way, from untrained to trained
    OUT/state.pt           where an interrupted training goes on; gone when it has finished
    OUT/model.safetensors  the trained model, for `load_model`
    OUT/open_clip_model.safetensors, open_clip_config.json  instead of it, where the recipe trains a
        CLIP model: OUT is then a folder as open_clip keeps them, for `load_clip`
    OUT/average.safetensors  the moving average of its weights, where the recipe asks for one
    OUT/README.md          its model card
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from polysem.errors import NonFiniteError
from polysem.interrupt import interrupt_flag
from polysem.models.checkpoint import read_checkpoint
from polysem.processes import processes
from polysem.train.finish import TrainResult, evaluate_job, finish, save_weights
from polysem.train.outputs import Outputs
from polysem.train.prepare import Job, prepare, settings
from polysem.train.recipe import Recipe
from polysem.train.schedules import log_spaced_steps
from polysem.train.start import with_start
from polysem.train.state import Progressed, check_same_training, load_state, save_state
from polysem.train.step import Showing, shown, take_step
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
    heeded between two steps, when the state to resume from has been written. Of several processes
    (``accelerate launch``) all call this; each shows its part of every batch, the first one
    writes, and a training that is stopped goes on from the last state, with as many.

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
    outputs = Outputs(Path(out).expanduser(), clip=recipe.contrast is not None)
    outputs.check(resume=resume, overwrite=overwrite)
    recipe = with_start(recipe)
    if resume and not outputs.state.exists():
        return _finished_before(outputs, recipe)
    clock = _Clock()
    with settings(recipe.threads), processes(device) as group:
        told = on_progress if group.first else lambda progress: None
        job = prepare(
            recipe, group, report=lambda spec, done, total: told(Progress(spec, done, total))
        )
        group.wait()  # until all have looked at the folder as it was
        progressed = _resume(job, outputs) if resume else _start(job, outputs)
        clock.add(progressed)
        last = _run(job, outputs, progressed, clock, told)
        return finish(job, outputs, progressed, last, command=command)


def _finished_before(outputs: Outputs, recipe: Recipe) -> TrainResult:
    checkpoint = read_checkpoint(outputs.model)
    check_same_training(checkpoint.recipe or {}, recipe, outputs.model)
    return TrainResult(outputs.model, checkpoint.metrics or {})


def _start(job: Job, outputs: Outputs) -> Progressed:
    if job.group.first:
        outputs.start(job.recipe)
    progressed = Progressed()
    _save_state(job, outputs, progressed)
    return progressed


def _resume(job: Job, outputs: Outputs) -> Progressed:
    group = job.group
    state = load_state(outputs.state, job.recipe, job.train.fingerprint, n_processes=group.count)
    job.model.load_state_dict(state.model)
    job.optimiser.load_state_dict(state.optimiser)
    if job.average is not None and state.average is not None:
        job.average.module.load_state_dict(state.average)
    torch.set_rng_state(state.cpu_rngs[group.number])
    if state.cuda_rngs:
        torch.cuda.set_rng_state(state.cuda_rngs[group.number], group.device)
    progressed = Progressed(**state.progressed)
    if group.first:
        outputs.rewind_log(progressed.step)
    return progressed


def _save_state(job: Job, outputs: Outputs, progressed: Progressed) -> None:
    save_state(
        outputs.state,
        job.recipe,
        job.train.fingerprint,
        job.model,
        job.optimiser,
        progressed,
        average=None if job.average is None else job.average.module,
        group=job.group,
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
    saved_at, lr = progressed.step, math.nan
    snapshots = log_spaced_steps(job.total_steps, job.recipe.snapshots)
    if progressed.step == 0 and 0 in snapshots:
        save_weights(job, outputs.snapshot(0), step=0)
    alone = job.group.count == 1
    tally = Tally(read_every=1 if alone and job.group.device.type == "cpu" else 20, group=job.group)
    # With several processes Ctrl-C reaches them at different steps: they end as if killed.
    watched = interrupt_flag() if alone else nullcontext(lambda: False)
    try:
        with watched as interrupted, closing(shown(job, progressed.step)) as showings:
            while progressed.step < job.total_steps:
                lr = _step(job, showings, progressed, tally)
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
        rate = "" if "learning rate" in str(error) else f", at the learning rate {lr:.3g}"
        raise NonFiniteError(
            f"{error}{rate}; the last good state, after step {saved_at}, is kept in "
            f"{outputs.state}. Lower optimiser.lr or set optimiser.clip, and start anew"
        ) from None
    return record or outputs.last_record()


def _step(
    job: Job, showings: Iterator[list[Showing]], progressed: Progressed, tally: Tally
) -> float:
    """Show one batch and change the weights once; return the learning rate it was done with."""
    began = time.perf_counter()
    showing = next(showings)
    stepped = take_step(job, showing)
    tally.add(progressed.step, stepped, showing[0][0].total)
    progressed.step += 1
    progressed.train_s += time.perf_counter() - began
    return stepped.lr


def _end_epoch(
    job: Job, outputs: Outputs, progressed: Progressed, clock: _Clock, lr: float
) -> Mapping[str, Any]:
    try:
        test = evaluate_job(job, job.model)
        average = None if job.average is None else evaluate_job(job, job.average.module)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} after step {progressed.step}") from None
    clock.add(progressed)
    record = {
        "step": progressed.step,
        "epoch": progressed.step / job.epoch_steps,
        "lr": lr,
        "train_loss": progressed.loss_sum / progressed.n_seen,
        "train_accuracy": progressed.n_correct / progressed.n_seen,
        **test.record(),
        **({} if average is None else {"average_test_accuracy": average.accuracy}),
        "images_per_s": progressed.n_seen / progressed.train_s,
        "cpu_s": progressed.cpu_s,
        "wall_s": progressed.wall_s,
    }
    if job.group.first:
        outputs.add_to_log(record)
    progressed.next_epoch()
    return record
