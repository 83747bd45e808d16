"""`heads`: what each attention head does, and whether heads work with or against each other.

Ablations, gradients and patterns of a few hundred images become arrays in a run, image by image,
from which `analysis.heads` makes tables with intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import NonFiniteError, SpecError, did_you_mean
from polysem.launch import Launch
from polysem.models.load import LoadedModel, load_model
from polysem.probe import head_writes
from polysem.probe.describe import class_mismatch
from polysem.probe.gates import GatedViT, Target, frozen, target_cost
from polysem.probe.head_batch import (
    METHODS,
    SHARES,
    Batch,
    Measured,
    Method,
    Plan,
    make_plan,
    mean_outputs,
    measure,
)  # fmt: skip
from polysem.probe.head_inputs import Images, Numbers, choose, home, partners
from polysem.probe.head_patterns import patch_grid
from polysem.processes import Processes, processes
from polysem.progress import progress_bar
from polysem.store.additions import add_arrays
from polysem.store.run import Run
from polysem.store.schema import GATES, dataset

__all__ = ["heads"]


def heads(
    model: str | Path | LoadedModel,
    data: str | Path | ImageData,
    *,
    out: str | Path,
    target: Target = "margin",
    method: Method = "gradients",
    limit: int = 256,
    of_class: str | None = None,
    exact_pairs: int = 200,
    shapley: int = 0,
    draws: int = 8,
    chance: bool = True,
    batch_size: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Run:
    """Measure what every attention head does for the network, alone and beside every other.

    Processes that were started together share the images, and each returns the run.

    Parameters
    ----------
    model : str, Path or LoadedModel
        A vision transformer, as anything that `load_model` takes.
    data : str, Path or ImageData
        Anything that `load_data` takes.
    out : str or Path
        Folder of a new run, or of one of the same model and data, to which arrays are added.
    target : {"margin", "loss"}
        What heads are held to: the logit of the right class minus the highest other, or the
        cross-entropy. Costs are higher when worse: the margin counts with its sign turned.
    method : {"gradients", "hessian", "exact"}
        How the interaction of all pairs is found (`interactions.by_gradients`, `by_hessian`), or
        each pair by ablating both.
    limit : int, default 256
        Images, drawn at random where there are more.
    of_class : str, optional
        Use only the images of this class, given by name or number.
    exact_pairs : int, default 200
        Pairs, drawn at random, whose interaction is also computed exactly.
    shapley : int, default 0
        Samples of the Shapley interaction of these pairs.
    draws : int, default 8
        Random orders in which heads are dropped.
    chance : bool, default True
        Also measure random partitions of the heads' outputs.
    batch_size : int, optional
        Images times ablations that go through side by side; 32 on a CPU, 256 on a GPU. Halved as
        often as memory asks for it.
    device : str, default "auto"
        ``auto`` takes a GPU if there is one.
    seed : int, default 0
        Of all that is drawn at random.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    Run
        With ``gates.zarr`` as `store.schema.GATES` describes it. Where the labels cannot be held
        against the model's outputs, its own predictions stand in; the notes say so.

    Raises
    ------
    PolysemError
        Bad model, data or run; a class without images; values that are not finite. An older
        result at `out` stays then, and nothing new appears.
    """
    _check_numbers(limit=limit, batch_size=batch_size, draws=draws)
    if method not in METHODS:
        raise SpecError(f"unknown method {method!r}{did_you_mean(method, METHODS)}")
    cost = target_cost(target)
    loaded = model if isinstance(model, LoadedModel) else load_model(str(model))
    out = Path(out).expanduser()
    with processes(device) as group:
        place = group.device
        vit = GatedViT(loaded.model.to(place))
        show = progress and group.first
        with home(out, loaded, data, limit, device, show, group) as (run, source):
            chosen = choose(run, source, of_class, limit, seed)
            rows = batch_size or (256 if place.type == "cuda" else 32)
            with frozen(loaded.model), progress_bar(show=show) as move:
                seen = Images(loaded, source, chosen, place)
                labels, notes = _labels(vit, loaded, source, seen, rows)
                vit.check(seen.images([0]))
                writes, why = _can_attribute(vit, seen, labels)
                plan = make_plan(
                    vit, cost=cost, method=method, n_pairs=exact_pairs, n_shapley=shapley,
                    n_draws=draws, chance=chance, writes=writes, seed=seed,
                    means=_means(vit, seen, rows),
                )  # fmt: skip
                work = _Work(vit, seen, labels, plan, partners(len(seen), seed))
                parts, halved = _shared(work, rows, move, group)
            notes = [*notes, *why, *halved]
            settings = {
                "target": target, "method": method, "seed": seed, "class": of_class or "",
                "draws": draws, "notes": notes,
            }  # fmt: skip
            if group.first:
                add_arrays(run, "gates", _dataset(vit, plan, parts, seen, labels, settings))
        group.wait()
        return Run.open(out)


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise SpecError(f"{name} must be at least 1, not {value}")


def _labels(
    vit: GatedViT, loaded: LoadedModel, source: ImageData, seen: Images, rows: int
) -> tuple[Tensor, list[str]]:
    """Return the class that each image is held to [image], and what is to be said about it.

    Raises
    ------
    SpecError
        If the model has fewer than two outputs.
    NonFiniteError
        If an output is not finite.
    """
    with torch.no_grad():
        outputs = [
            vit.model(seen.images(range(at, min(at + rows, len(seen)))))
            for at in range(0, len(seen), rows)
        ]
    logits = torch.cat(outputs)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise SpecError(
            f"{loaded.name} has {logits.shape[-1]} output; a margin needs two classes or more"
        )
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).nonzero()[0, 0])
        raise NonFiniteError(
            f"the output for image {source.keys[int(seen.numbers[bad])]!r} is not finite"
        )
    mismatch = class_mismatch(loaded, source, logits.shape[1])
    if mismatch is None:
        assert source.labels is not None
        return torch.from_numpy(source.labels[seen.numbers]).to(logits.device), []
    reason = mismatch.split(":")[0]
    note = f"{reason}: heads are held to the model's own predictions; correct means unchanged"
    return logits.argmax(1), [note]


def _can_attribute(vit: GatedViT, seen: Images, labels: Tensor) -> tuple[bool, list[str]]:
    """Return whether heads' writes can be told apart, or why not."""
    try:
        head_writes.attribute(vit, seen.images([0]), labels[:1])
    except SpecError as error:
        return False, [f"no direct attribution to logits: {error}"]
    return True, []


def _means(vit: GatedViT, seen: Images, rows: int) -> dict[int, Tensor]:
    """Return the mean output of each head over all images, by layer."""
    total: dict[int, Tensor] = {}
    for at in range(0, len(seen), rows):
        images = seen.images(range(at, min(at + rows, len(seen))))
        for layer, mean in mean_outputs(vit, images).items():
            total[layer] = total.get(layer, 0) + mean * (len(images) / len(seen))
    return total


@dataclass(frozen=True)
class _Work:
    vit: GatedViT
    seen: Images
    labels: Tensor
    plan: Plan
    partners: Numbers

    def batch(self, start: int, stop: int) -> Batch:
        which = np.arange(start, stop)
        return Batch(
            self.seen.images(which),
            self.seen.pixels[start:stop],
            self.seen.images(self.partners[start:stop]),
            self.labels[start:stop],
        )


def _shared(
    work: _Work, rows: int, move: Any, group: Processes
) -> tuple[list[Measured], list[str]]:
    """Measure all images, each process its share of the batches; all return all.

    Raises
    ------
    SpecError
        If memory does not suffice for one image.
    """
    share = Launch(group.number, group.count).share(-(-len(work.seen) // rows))
    span = range(share.start * rows, min(share.stop * rows, len(work.seen)))
    parts, notes = _in_batches(work, rows, move, span)
    if group.count == 1:
        return parts, notes
    found = group.collect(([part.on_host() for part in parts], notes))
    return (
        [part for theirs, _ in found for part in theirs],
        list(dict.fromkeys(note for _, theirs in found for note in theirs)),
    )


def _in_batches(work: _Work, rows: int, move: Any, span: range) -> tuple[list[Measured], list[str]]:
    """Measure some images, with half as many side by side whenever memory does not suffice.

    Raises
    ------
    SpecError
        If it does not suffice for one.
    """
    parts, start, asked = [], span.start, rows
    while start < span.stop:
        stop = min(start + rows, span.stop)
        try:
            parts.append(measure(work.vit, work.batch(start, stop), work.plan, rows=rows))
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if rows == 1:
                raise SpecError(
                    "memory does not suffice for one image; close what else is running, or use "
                    "another --device"
                ) from None
            rows //= 2
            continue
        start = stop
        move("heads", start - span.start, len(span))
    return parts, [f"memory did not suffice for --batch-size {asked}; {rows} was used"] * (
        rows < asked
    )


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "allocate memory" in str(error) or "not enough memory" in str(error)


def _dataset(
    vit: GatedViT,
    plan: Plan,
    parts: list[Measured],
    seen: Images,
    labels: Tensor,
    settings: Mapping[str, Any],
) -> xr.Dataset:
    """Return everything as the run keeps it.

    Raises
    ------
    NonFiniteError
        If a cost is not finite.
    """
    n_layers, n_heads = len(vit.layers), vit.n_heads
    arrays: dict[str, np.ndarray[Any, Any]] = {
        name: np.concatenate([part.per_image[name] for part in parts])
        for name in parts[0].per_image
    }
    for name in ("cost", "cost_zero", "interaction"):
        if not np.isfinite(arrays[name]).all():
            raise NonFiniteError(f"{name} is not finite on some images; check the model's weights")
    moments = reduce(add, (part.moments for part in parts))
    total = reduce(add, (part.pattern_sum for part in parts)) / len(seen)
    own = -torch.special.xlogy(total, total).sum(-1).mean(-1).cpu().numpy()
    arrays["cka"] = moments.cka(len(vit.heads)).cpu().numpy()
    arrays["fixed_share"] = arrays["pattern_entropy"].mean(0) / np.where(own > 0, own, np.nan)
    height, width = seen.pixels.shape[-2:]
    grid = patch_grid(arrays["attention_map"].shape[-1], height, width)
    arrays["attention_map"] = arrays["attention_map"].reshape(
        *arrays["attention_map"].shape[:2], *grid
    )
    for name, values in arrays.items():
        dims = GATES[name].dims
        shape = list(values.shape)
        if "head_2" in dims:
            shape[-2:] = [n_layers, n_heads, n_layers, n_heads]
        elif "head" in dims:
            at = dims.index("layer")
            shape[at : at + 1] = [n_layers, n_heads]
        arrays[name] = values.reshape(shape).astype(np.float32, copy=False)
    arrays["attention_map"] = arrays["attention_map"].astype(np.float16)
    arrays["held_to"] = labels.cpu().numpy()
    if plan.pairs:
        arrays["pair_first"], arrays["pair_second"] = np.array(plan.pairs).T
    coords = {
        "image": seen.numbers,
        "layer": list(vit.layers),
        "layer_2": list(vit.layers),
        "share": SHARES,
    }
    found = dataset(GATES, arrays, coords)
    found.attrs = dict(settings)
    return found
