"""How fast a training is beside its bare network, and where the time of a step goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from polysem.data.sources import load_data
from polysem.errors import RecipeError
from polysem.processes import processes
from polysem.train.evaluate import autocast
from polysem.train.hold import hold
from polysem.train.prepare import Job, prepare, settings
from polysem.train.recipe import Recipe, parse_recipe, recipe_to_dict
from polysem.train.step import Showing, shown, take_step

__all__ = ["MEANINGS", "bench_train"]

MEANINGS = {
    "loop": "bare: forward and backward pass of the network on batches that lie ready as it takes "
    "them; cached: whole steps on images kept in memory; streamed: on images read while training",
    "images_per_s": "median over repeats",
    "ratio": "to the bare loop of the same repeat, median over repeats; 1 would be for nothing",
    "part": "of a cached step, in its order; forward and backward are the network's computing",
    "ms": "median over steps, with the device waited for after each part",
    "share": "of the step",
}
"""What the columns of both tables hold."""

_WARM_UP = 2
_COMPUTING = ("forward", "backward")


def bench_train(
    recipe: Recipe,
    *,
    steps: int = 20,
    repeats: int = 3,
    device: str = "auto",
    report: Callable[[str], None] = lambda line: None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the steps of a recipe against the bare forward and backward pass.

    The three loops are timed by turns, `repeats` times, in one process and on one network, with
    the batches of the recipe. What a training does between steps (tests, saving) is left out.

    Parameters
    ----------
    recipe : Recipe
    steps : int
        Of each loop in each repeat, after two that are not counted.
    repeats : int
    device : str
        As for `choose_device`.
    report : callable
        Told about each repeat.

    Returns
    -------
    DataFrame
        Columns loop, images_per_s, ratio.
    DataFrame
        Columns part, ms, share; the parts of a step, and ``network``, what forward and backward
        pass have of it together. See `MEANINGS`.

    Raises
    ------
    RecipeError
        If the recipe cannot be followed.
    """
    if recipe.contrast is not None:
        raise RecipeError("the bench measures trainings on classes, not those with contrast")
    recipe = _endless(recipe)
    with settings(recipe.threads), processes(device) as group:
        if group.count > 1:
            raise RecipeError("the bench measures one process; start it plainly")
        job = prepare(recipe, group, report=lambda *_: None)
        data = load_data(recipe.data.train, limit=recipe.data.train_limit)
        streaming = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"stream": True})}
        )
        streamed = hold(
            data, job.transform, streaming, group, report=lambda *_: None, training=True
        )
        loops: dict[str, Callable[[int], float]] = {
            "bare": _bare(job),
            "cached": lambda n: _whole(job, n),
            "streamed": lambda n: _whole(replace(job, train=streamed), n),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for repeat in range(repeats):
            for name, loop in loops.items():
                seconds[name].append(loop(steps))
            report(
                f"repeat {repeat + 1} of {repeats}: "
                + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
            )
        profile = _profile(job, steps)
    return _speeds(seconds, steps * min(recipe.batch_size, len(job.train))), profile


def _endless(recipe: Recipe) -> Recipe:
    """Return the recipe with more steps than are measured, so that the schedule never ends."""
    plain = recipe_to_dict(recipe)
    plain["schedule"] |= {"epochs": None, "steps": 10**7, "warmup_steps": 0}
    plain["data"]["stream"] = None if recipe.augment.resized_crop else False
    return parse_recipe(plain)


def _bare(job: Job) -> Callable[[int], float]:
    """Return a loop over four batches that were made ready."""
    ready: list[tuple[Tensor, Tensor]] = []
    with closing(shown(job, 0)) as showings:
        for _ in range(4):
            part, pixels = next(showings)[0]
            images = job.transform.normalize(pixels)
            labels = job.train.labels[part.indices.to(pixels.device)]
            ready.append((images.contiguous(memory_format=job.memory_format), labels))

    def loop(steps: int) -> float:
        began = 0.0
        for step in range(_WARM_UP + steps):
            if step == _WARM_UP:
                _wait(job)
                began = time.perf_counter()
            images, labels = ready[step % len(ready)]
            job.optimiser.zero_grad(set_to_none=True)
            with autocast(images.device, job.recipe.precision):
                logits = job.network(images)
            job.loss(logits, labels, training=True).backward()  # type: ignore[no-untyped-call]
        _wait(job)
        return time.perf_counter() - began

    return loop


def _whole(job: Job, steps: int) -> float:
    with closing(shown(job, 0)) as showings:
        for _ in range(_WARM_UP):
            take_step(job, next(showings))
        _wait(job)
        began = time.perf_counter()
        for _ in range(steps):
            take_step(job, next(showings))
        _wait(job)
        return time.perf_counter() - began


def _profile(job: Job, steps: int) -> pd.DataFrame:
    with closing(shown(job, 0)) as showings:
        for _ in range(_WARM_UP):
            take_step(job, next(showings))
        taken = pd.DataFrame([_parts_of_a_step(job, showings) for _ in range(steps)])
    table = taken.median().mul(1000).rename("ms").rename_axis("part").reset_index()
    table["share"] = table["ms"] / table["ms"].sum()
    network = table[table["part"].isin(_COMPUTING)]
    total = {"part": "network", "ms": network["ms"].sum(), "share": network["share"].sum()}
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


def _parts_of_a_step(job: Job, showings: Iterator[list[Showing]]) -> dict[str, float]:
    """Take a step; return the seconds of its parts."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def watch(done: str) -> None:
        nonlocal last
        _wait(job)
        now = time.perf_counter()
        seconds[done] = seconds.get(done, 0.0) + now - last
        last = now

    showing = next(showings)
    watch("fetch")
    take_step(job, showing, watch)
    return seconds


def _speeds(seconds: dict[str, list[float]], n_images: int) -> pd.DataFrame:
    rows = []
    for name, times in seconds.items():
        ratios = [bare / own for bare, own in zip(seconds["bare"], times, strict=True)]
        speed = n_images / statistics.median(times)
        rows.append({"loop": name, "images_per_s": speed, "ratio": statistics.median(ratios)})
    return pd.DataFrame(rows)


def _wait(job: Job) -> None:
    if job.group.device.type == "cuda":
        torch.cuda.synchronize(job.group.device)
