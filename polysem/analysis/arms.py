"""Arms of a comparison: which runs are networks of one kind, and whether they can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polysem.analysis.permutation import least_p
from polysem.errors import DataError, RunError, SpecError
from polysem.sites import select_sites
from polysem.store.run import Run

__all__ = ["Arm", "arms_of", "checked", "sites_of", "what_to_know"]


@dataclass(frozen=True)
class Arm:
    """One way of making networks, with a run of each network made so."""

    name: str
    runs: tuple[Run, ...]


def arms_of(
    given: Mapping[str, Sequence[Run | str | Path]] | Sequence[Run | str | Path],
) -> list[Arm]:
    """Return the arms that are named, or one for each run, called like its folder.

    Raises
    ------
    SpecError
        If there are fewer than two, one is empty, or runs have the same name.
    PolysemError
        If a run cannot be opened.
    """
    if isinstance(given, Mapping):
        arms = [Arm(str(name), tuple(map(_opened, runs))) for name, runs in given.items()]
    else:
        arms = [Arm(run.path.resolve().name, (run,)) for run in map(_opened, given)]
    if len(arms) < 2:
        given_is = "one arm is" if arms else "nothing is"
        raise SpecError(f"{given_is} named; a comparison takes at least two runs or groups")
    for arm in arms:
        if not arm.runs:
            raise SpecError(f"arm {arm.name!r} has no run")
    twice = {a.name for a, b in combinations(arms, 2) if a.name == b.name}
    if twice:
        raise SpecError(
            f"two arms are called {min(twice)!r}; name them with --group NAME=RUN, or their runs "
            "as one arm with --group NAME=RUN,RUN"
        )
    return arms


def _opened(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run.open(run)


def checked(arms: Sequence[Arm]) -> npt.NDArray[np.int64]:
    """Return the images that all runs saw, if they can be compared at all.

    Raises
    ------
    DataError
        If runs are on different images, or an arm has one network twice.
    RunError
        If heads were studied in different ways.
    """
    runs = [run for arm in arms for run in arm.runs]
    for arm in arms:
        for one, other in combinations(arm.runs, 2):
            if one.manifest["model"]["sha256"] == other.manifest["model"]["sha256"]:
                raise DataError(
                    f"{one.path} and {other.path} are runs of the same network, and not two seeds "
                    f"of arm {arm.name!r}; leave one out"
                )
    first, images = runs[0], runs[0].images["image"].to_numpy(dtype=np.int64)
    for other in runs[1:]:
        same = first.manifest["data"]["fingerprint"] == other.manifest["data"]["fingerprint"]
        if not (same and np.array_equal(images, other.images["image"])):
            raise DataError(
                f"{first.path} and {other.path} were probed on different images "
                f"({_shown(first)} and {_shown(other)}) and cannot be compared; probe both on the "
                "same"
            )
    _check_heads([run for run in runs if (run.path / "gates.zarr").is_dir()])
    return images


def _shown(run: Run) -> str:
    return f"{len(run.images):,} of {run.manifest['data']['name']}"


def _check_heads(studied: Sequence[Run]) -> None:
    for other in studied[1:]:
        for name in ("target", "method"):
            ways = [run.gates.attrs[name] for run in (studied[0], other)]
            if ways[0] != ways[1]:
                raise RunError(
                    f"heads of {studied[0].path} were studied with {name} {ways[0]}, those of "
                    f"{other.path} with {ways[1]}; study one of them again"
                )


def sites_of(runs: Sequence[Run], globs: str | None) -> list[str]:
    """Return the sites to compare, in network order.

    Raises
    ------
    SpecError
        If a glob matches none of a run's sites.
    DataError
        If the runs were not probed at the same sites.
    """
    of_runs = [run.sites if globs is None else select_sites(run.sites, globs) for run in runs]
    for run, its in zip(runs, of_runs, strict=True):
        odd = sorted(set(of_runs[0]) ^ set(its))
        if odd:
            with_it = runs[0] if odd[0] in of_runs[0] else run
            without = run if with_it is runs[0] else runs[0]
            raise DataError(
                f"{with_it.path} was probed at {odd[0]} and {without.path} was not "
                f"({len(odd)} sites differ); probe both at the same sites, or choose common ones "
                "with --sites"
            )
    return of_runs[0]


def what_to_know(arms: Sequence[Arm], tables: Sequence[str]) -> list[str]:
    """Return sentences on what a comparison of these arms cannot say."""
    runs = [run for arm in arms for run in arm.runs]
    notes = []
    single = [arm.name for arm in arms if len(arm.runs) == 1]
    if single:
        has = "arm has" if len(single) == 1 else "arms have"
        notes.append(
            f"{has} a single seed: {', '.join(single)}. Differences from it are between these "
            "networks, over layers and units, and say nothing of other seeds; p too"
        )
    for one, other in combinations(arms, 2):
        sizes = len(one.runs), len(other.runs)
        if min(sizes) > 1 and least_p(*sizes) > 0.05:
            notes.append(
                f"{one.name} against {other.name}: {sizes[0]} and {sizes[1]} seeds can give no p "
                f"below {least_p(*sizes):.3g}, whatever they differ by; read the intervals"
            )
    for arm in arms:
        for key in sorted({key for run in arm.runs[1:] for key in _odd(arm.runs[0], run)}):
            notes.append(f"runs of {arm.name} differ in {key}, and are not seeds of one recipe")
    for run, again in combinations(runs, 2):
        if run.manifest["model"]["sha256"] == again.manifest["model"]["sha256"]:
            notes.append(f"{run.path} and {again.path} are runs of the same network")
    for run in runs:
        if run.manifest["status"] != "complete":
            notes.append(f"{run.path} is {run.manifest['status']}")
    encoders = {(run.manifest.get("embedding") or {}).get("fingerprint") for run in runs}
    if len(encoders) > 1 and {"polysemanticity", "unit_facets"} & set(tables):
        notes.append(
            "runs were embedded by different encoders, so that ms, clarity, redundancy, "
            "excess_rank and facets do not compare; ms_above_chance does, with care"
        )
    if "labels" in tables:
        named_by = [run.table("labels").attrs.get("made_by") or {} for run in runs]
        for what in ("clip", "vocabulary"):
            if len({made_by.get(what) for made_by in named_by}) > 1:
                notes.append(f"units were named with different {what}, on which names depend")
    for option in ("top_k", "pooled", "sample"):
        if len({run.manifest["options"].get(option) for run in runs}) > 1:
            notes.append(f"runs were probed with different {option}, which scores depend on")
    return notes


def _odd(one: Run, other: Run) -> list[str]:
    """Return in what two recipes differ apart from the seed."""
    recipes: list[dict[str, Any]] = [
        run.manifest["model"].get("info", {}).get("recipe") or {} for run in (one, other)
    ]
    keys = {key for recipe in recipes for key in recipe} - {"seed", "notes", "threads", "data"}
    return [key for key in keys if recipes[0].get(key) != recipes[1].get(key)]
