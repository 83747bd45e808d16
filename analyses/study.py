"""Run a study: the steps that a YAML names, over its networks and images, and the answer.

python analyses/study.py analyses/bcos_vs_vit/study.yaml --out runs/bcos_vs_vit

Every step is a polysem command, written out in the YAML. A step that is done is passed over, also
after an interruption; a step whose command, network or earlier steps changed is done again. What
is found goes to OUT/report: the answer, its table, and what would change it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from answer import Evidence, write_answer

from polysem.cli import app
from polysem.errors import MissingError, PolysemError, RunError, SpecError, did_you_mean
from polysem.store.tables import save_text

__all__ = ["Images", "Step", "Study", "load_study", "run_study"]

Scope = Literal["network", "snapshots", "images", "study"]

_KEYS = {"title", "hypothesis", "arms", "images", "steps", "evidence", "recipe"}
_SCOPES = ("network", "snapshots", "images", "study")


@dataclass(frozen=True)
class Step:
    """A polysem command with places to fill in, and what it is done for."""

    name: str
    scope: Scope
    command: str
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Images:
    """Images, and the networks of each arm that are shown them."""

    name: str
    settings: dict[str, str]
    networks: dict[str, list[str]]
    snapshots: dict[str, str]


@dataclass(frozen=True)
class Study:
    """What is asked, of which networks, in which steps, and what counts as evidence."""

    title: str
    hypothesis: str
    arms: tuple[str, str]
    images: list[Images]
    steps: list[Step]
    evidence: list[Evidence]
    recipe: str | None = None


def load_study(path: str | Path, settings: Sequence[str] = ()) -> Study:
    """Read a study.

    Parameters
    ----------
    path : str or Path
    settings : sequence of str
        ``IMAGES.KEY=VALUE``: other settings of some images, such as ``cifar10.data=PATH``.

    Raises
    ------
    MissingError
        If there is no such file.
    SpecError
        If something in it, or a setting, cannot be understood.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"there is no study at {path}")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(given, dict) or not _KEYS - {"recipe"} <= set(given) <= _KEYS:
        raise SpecError(f"{path} has to have the keys {', '.join(sorted(_KEYS - {'recipe'}))}")
    changed = _changed(given["images"], settings)
    arms = tuple(given["arms"])
    if len(arms) != 2:
        raise SpecError(f"{path} has {len(arms)} arms; a study holds one against another")
    images = [_images(name, dict(its), arms, path) for name, its in changed.items()]
    steps = [_step(one, path) for one in given["steps"]]
    evidence = [_evidence(one, path) for one in given["evidence"]]
    if not evidence:
        raise SpecError(f"{path} names no evidence; the first entry is the headline")
    return Study(
        given["title"], given["hypothesis"], arms, images, steps, evidence, given.get("recipe")
    )


def _changed(
    images: Mapping[str, Mapping[str, Any]], settings: Sequence[str]
) -> dict[str, dict[str, Any]]:
    found = {name: dict(its) for name, its in images.items()}
    for setting in settings:
        place, equals, value = setting.partition("=")
        name, dot, key = place.partition(".")
        if not (equals and dot):
            raise SpecError(f"--set {setting} has to be IMAGES.KEY=VALUE")
        if name not in found or key not in found[name] or key in ("networks", "snapshots"):
            known = [f"{n}.{k}" for n, its in found.items() for k in its if k not in
                     ("networks", "snapshots")]  # fmt: skip
            near = did_you_mean(place, known) or f"; there are {', '.join(known)}"
            raise SpecError(f"this study has no setting {place!r}{near}")
        found[name][key] = value
    return found


def _images(name: str, its: dict[str, Any], arms: Sequence[str], path: Path) -> Images:
    networks = {arm: list(files) for arm, files in its.pop("networks", {}).items()}
    snapshots = its.pop("snapshots", {})
    if set(networks) != set(arms) or not all(networks.values()):
        raise SpecError(f"images {name!r} of {path} need networks of {' and of '.join(arms)}")
    return Images(name, {key: str(value) for key, value in its.items()}, networks, snapshots)


def _step(one: Mapping[str, Any], path: Path) -> Step:
    if not {"name", "for", "run"} <= set(one) <= {"name", "for", "run", "only"}:
        raise SpecError(f"a step of {path} has to have name, for and run, and may have only: {one}")
    if one["for"] not in _SCOPES:
        raise SpecError(f"step {one['name']!r} is for {one['for']!r}, not {', '.join(_SCOPES)}")
    only = None if "only" not in one else tuple(one["only"])
    return Step(one["name"], one["for"], one["run"], only)


def _evidence(one: Mapping[str, Any], path: Path) -> Evidence:
    if set(one) != {"table", "measure", "site", "supports", "says"} or one["supports"] not in (
        "lower",
        "higher",
    ):
        raise SpecError(
            f"evidence of {path} has to have table, measure, site, supports (lower or higher) and "
            f"says: {one}"
        )
    return Evidence(**one)


@dataclass(frozen=True)
class Job:
    """A step for one network, one set of images or the study: words, and what it goes on from."""

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...]
    files: tuple[str, ...]


def jobs_of(study: Study, out: Path, skip: Sequence[str] = ()) -> list[Job]:
    """Return all that is to be done, in order.

    A job goes on from the earlier ones of its network, its images, or the study.
    """
    jobs: list[Job] = []
    done: dict[str, list[str]] = {}  # by place: "images/arm-0", "images", ""

    def add(step: Step, place: str, places: Mapping[str, str | list[str]], files: Any) -> None:
        name = " ".join(filter(None, (step.name, place)))
        near = (at for at in done if _within(at, place) or _within(place, at))
        below = [job for at in near for job in done[at]]
        jobs.append(Job(name, _filled(step, places), tuple(below), tuple(files)))
        done.setdefault(place, []).append(name)

    chosen = [step for step in study.steps if step.name not in skip]
    for step in chosen:
        all_runs: list[str] = []
        for images in study.images:
            if step.only is not None and images.name not in step.only:
                continue
            folder = out / images.name
            runs = {
                arm: [str(folder / f"{arm}-{k}") for k in range(len(models))]
                for arm, models in images.networks.items()
            }
            groups = [
                word for arm in study.arms for word in ("--group", f"{arm}={','.join(runs[arm])}")
            ]
            flat = [run for arm in study.arms for run in runs[arm]]
            all_runs += flat
            common: dict[str, str | list[str]] = {
                **images.settings, "images": images.name, "folder": str(folder),
            }  # fmt: skip
            if step.scope == "network":
                for arm in study.arms:
                    for run, model in zip(runs[arm], images.networks[arm], strict=True):
                        places = common | {"run": run, "model": model, "arm": arm}
                        add(step, f"{images.name}/{Path(run).name}", places, [model])
            elif step.scope == "snapshots":
                for arm, glob in images.snapshots.items():
                    places = common | {"snapshots": glob, "arm": arm}
                    add(step, f"{images.name}/{arm}-snapshots", places, [])
            elif step.scope == "images":
                add(step, images.name, common | {"groups": groups, "runs": flat}, [])
        if step.scope == "study":
            add(step, "", {"runs": all_runs, "out": str(out)}, [])
    return jobs


def _within(place: str, other: str) -> bool:
    return other in ("", place) or place.startswith(f"{other}/")


def _filled(step: Step, places: Mapping[str, str | list[str]]) -> tuple[str, ...]:
    """Return the words of a command; {groups} and {runs} are several words."""
    words: list[str] = []
    try:
        for word in shlex.split(step.command):
            several = places.get(word[1:-1]) if word.startswith("{") else None
            if isinstance(several, list):
                words += several
            else:
                words.append(word.format_map(places))
    except KeyError as error:
        known = ", ".join(f"{{{name}}}" for name in places)
        raise SpecError(
            f"step {step.name!r} has a place {{{error.args[0]}}} that nothing fills; there are "
            f"{known}"
        ) from None
    return tuple(words)


def run_study(
    study: Study, out: str | Path, *, skip: Sequence[str] = (), dry: bool = False
) -> Path | None:
    """Do what is not done yet, write the answer, and return its file.

    Parameters
    ----------
    study : Study
    out : str or Path
        Folder of runs, logs and report.
    skip : sequence of str
        Names of steps that are left out.
    dry : bool
        Only print the commands.

    Raises
    ------
    PolysemError
        A step failed; what was done before is kept and passed over next time.
    """
    out = Path(out)
    names = {step.name for step in study.steps}
    for name in skip:
        if name not in names:
            raise SpecError(f"no step is called {name!r}{did_you_mean(name, names)}")
    jobs = jobs_of(study, out, skip)
    if dry:
        for job in jobs:
            print("polysem " + shlex.join(job.words))
        return None
    done = _Done(out)
    for k, job in enumerate(jobs):
        key = done.key(job)
        if done.is_done(job, key):
            print(f"[{k + 1}/{len(jobs)}] {job.name}: done before")
            continue
        print(f"[{k + 1}/{len(jobs)}] {job.name}", flush=True)
        started, cpu = time.perf_counter(), time.process_time()
        _call(job, out / "logs" / f"{job.name.replace('/', '_').replace(' ', '-')}.log")
        done.add(job, key, time.perf_counter() - started, time.process_time() - cpu)
    page = write_answer(
        out / "report", title=study.title, hypothesis=study.hypothesis, arms=study.arms,
        comparisons={images.name: out / images.name / "compared" for images in study.images},
        encoders={i.name: i.settings.get("encoder") for i in study.images},
        evidence=study.evidence, recipe=study.recipe, seconds=done.seconds(jobs),
    )  # fmt: skip
    print(f"wrote {page}")
    return page


class _Done:
    """Which jobs are done, by what; kept in OUT/steps.json."""

    def __init__(self, out: Path) -> None:
        self.file = out / "steps.json"
        try:
            self.known: dict[str, dict[str, Any]] = json.loads(self.file.read_text("utf-8"))
        except FileNotFoundError:
            self.known = {}
        except ValueError:
            raise RunError(f"{self.file} is damaged; delete it to do all steps again") from None
        self.keys: dict[str, str] = {}

    def key(self, job: Job) -> str:
        """Return what stands for a job: its words, its files, and the jobs that it goes on from."""
        digest = hashlib.sha256()
        for word in (*job.words, *(self.keys[name] for name in job.after)):
            digest.update(word.encode() + b"\0")
        for file in map(Path, job.files):
            if file.is_file():
                digest.update(hashlib.sha256(file.read_bytes()).digest())
        self.keys[job.name] = digest.hexdigest()
        return self.keys[job.name]

    def is_done(self, job: Job, key: str) -> bool:
        return self.known.get(job.name, {}).get("key") == key

    def add(self, job: Job, key: str, seconds: float, cpu_seconds: float) -> None:
        self.known[job.name] = {
            "key": key, "command": shlex.join(["polysem", *job.words]),
            "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1),
        }  # fmt: skip
        save_text(json.dumps(self.known, indent=1, ensure_ascii=False) + "\n", self.file)

    def seconds(self, jobs: Sequence[Job]) -> tuple[float, float]:
        """Return wall and CPU seconds that these jobs took when they were done."""
        its = [self.known[job.name] for job in jobs]
        return sum(one["seconds"] for one in its), sum(one["cpu_seconds"] for one in its)


def _call(job: Job, log: Path) -> None:
    """Run one command in this process, its output into a log."""
    threads = torch.get_num_threads()
    with _logged(log):
        try:
            app(list(job.words), prog_name="polysem")
            code = 0
        except SystemExit as end:  # how a command ends, well or not
            code = end.code or 0
        finally:
            torch.set_num_threads(threads)  # which UMAP, through OpenMP, sets anew for all
    if code:
        raise RunError(f"step {job.name} ended with {code}; its output is in {log}")


@contextlib.contextmanager
def _logged(log: Path) -> Iterator[None]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def main(words: Sequence[str] | None = None) -> int:
    """Run a study from the command line; what the user can put right is one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", help="YAML of the study")
    parser.add_argument("--out", required=True, help="folder of runs, logs and report")
    parser.add_argument(
        "--set", action="append", default=[], metavar="IMAGES.KEY=VALUE",
        help="another setting of some images, such as cifar10.data=PATH",
    )  # fmt: skip
    parser.add_argument("--skip", default="", metavar="STEP,STEP", help="steps to leave out")
    parser.add_argument("--dry", action="store_true", help="only print the commands")
    given = parser.parse_args(words)
    skip = [name.strip() for name in given.skip.split(",") if name.strip()]
    try:
        run_study(load_study(given.study, given.set), given.out, skip=skip, dry=given.dry)
    except PolysemError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("study: interrupted; run again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
