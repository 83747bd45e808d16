"""Whether a probe that is killed at any moment loses anything: killed for real, many times."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polysem.data.dataset import ImageData
from polysem.data.shipped import shipped_file
from polysem.data.sources import load_data
from polysem.models.load import LoadedModel, load_model
from polysem.probe.forked import start_forked
from polysem.probe.probe import probe

__all__ = ["MEANINGS", "bench_faults", "digest", "images_kept"]

#: What the columns of the table hold.
MEANINGS: Mapping[str, str] = {
    "trial": "number of the trial",
    "killed_at": "seconds from the start of a probe to its SIGKILL, drawn anew for each trial",
    "whole_s": "seconds that the same probe takes undisturbed",
    "resumed": "images that were done and kept when it was killed; NaN if it had finished",
    "identical": "whether the run is then, file by file, the bytes of one never disturbed",
}


def bench_faults(
    *,
    trials: int = 50,
    model: str | None = None,
    data: str = "shapes:test?n=192&size=32",
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Kill a probe at a random moment, run it again, and compare with one never disturbed.

    Everything that a probe can record is recorded, and committed after every batch. A moment is
    drawn evenly from the time that the undisturbed probe takes, putting the run together included.

    Parameters
    ----------
    trials : int, default 50
    model : str, optional
        By default the shipped ``cifar10_cpu_bcos``: 4 blocks, and units that fire both ways.
    data : str
    seed : int, default 0
        Of the moments.
    report : callable
        Told about each finished trial.

    Returns
    -------
    DataFrame
        One row a trial, its columns as in `MEANINGS`.
    """
    spec = model or str(shipped_file("models", "cifar10_cpu_bcos.safetensors"))
    loaded, source = load_model(spec), load_data(data)
    draws = np.random.default_rng(seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _in_process(loaded, source, root / "warm")
        started = time.perf_counter()
        _in_process(loaded, source, root / "whole")
        whole_s = time.perf_counter() - started
        expected = digest(root / "whole")
        for trial in range(trials):
            out, killed_at = root / f"trial-{trial}", float(draws.uniform(0, whole_s))
            _in_process(loaded, source, out, kill_after=killed_at)
            resumed = np.nan if out.exists() else images_kept(out)
            if not out.exists():
                _in_process(loaded, source, out)
            leftovers = [p.name for p in root.iterdir() if p.name.startswith(f".{out.name}.")]
            row = {
                "trial": trial,
                "killed_at": round(killed_at, 3),
                "whole_s": round(whole_s, 3),
                "resumed": resumed,
                "identical": digest(out) == expected and not leftovers,
            }
            rows.append(row)
            report("  ".join(f"{name} {value}" for name, value in row.items()))
    table = pd.DataFrame(rows)
    table.attrs = {"columns": dict(MEANINGS)}
    return table


def digest(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a run by its path; of the manifest without times."""
    found = {}
    for file in sorted(p for p in run.rglob("*") if p.is_file()):
        content = file.read_bytes()
        if file.name == "manifest.json":
            facts = json.loads(content)
            content = json.dumps({k: v for k, v in facts.items() if k != "seconds"}).encode()
        found[str(file.relative_to(run))] = hashlib.sha256(content).hexdigest()
    return found


def images_kept(out: Path) -> int:
    """Return how many images an unfinished probe has kept."""
    try:
        with np.load(out.with_name(f".{out.name}.partial") / "process-0" / "state.npz") as state:
            return int(json.loads(state["told"].tobytes())["facts"]["n_images"])
    except FileNotFoundError:
        return 0


def _in_process(
    loaded: LoadedModel, source: ImageData, out: Path, *, kill_after: float | None = None
) -> None:
    """Probe in a process of its own, which shares all that is loaded here, and maybe kill it."""
    process = start_forked(_probe, loaded, source, out)
    process.join(kill_after)
    if kill_after is not None and process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if kill_after is None and process.exitcode != 0:
        raise RuntimeError(f"the undisturbed probe ended with exit code {process.exitcode}")


def _probe(loaded: LoadedModel, source: ImageData, out: Path) -> None:
    options: dict[str, Any] = {"pooled": True, "patterns": True, "smoothing": True}
    probe(
        loaded, source, out=out, embed="model", bootstrap=4, batch_size=16, sample=64,
        device="cpu", commit_every=0, progress=False, **options,
    )  # fmt: skip
