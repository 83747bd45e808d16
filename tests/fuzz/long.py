"""Spoil every kind of file that polysem reads, many times over, and count what comes of it.

    PYTHONPATH=.:tests python tests/fuzz/long.py --trials 2000 --out runs/fuzz

Each target runs in a process of its own with a limit on memory. Writes table.csv (target, trials,
clean_errors, accepted, tracebacks, code_run, writes_outside, slowest_s, peak_mb) and faults.csv
(target, seed, error) below ``--out``; a seed repeats its trial: ``--target run --seed 17``.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import resource
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from targets import TARGETS, Outcome, try_once

#: Seconds that a trial may take, and bytes that its process may use beyond what it starts with.
_SECONDS, _BYTES = 30, 3 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz everything that polysem reads.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--target", nargs="*", choices=[t.name for t in TARGETS])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    faults: list[dict[str, Any]] = []
    for number, target in enumerate(TARGETS):
        if asked.target and target.name not in asked.target:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak of its own
            row, found = pool.apply(_run, (number, asked.seed, asked.trials))
        rows.append(row)
        faults += found
        print(row, *found[:12], sep="\n    ", flush=True)
        pd.DataFrame(rows).to_csv(asked.out / "table.csv", index=False)
        columns = ["target", "seed", "error"]
        pd.DataFrame(faults, columns=columns).to_csv(asked.out / "faults.csv", index=False)


def _run(number: int, first: int, trials: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    target = TARGETS[number]
    faulthandler.register(signal.SIGUSR1)
    faults, slowest, counts = [], 0.0, {"clean": 0, "accepted": 0, "traceback": 0}
    code_run = outside = 0
    with tempfile.TemporaryDirectory() as scratch:
        valid, root = Path(scratch) / "valid", Path(scratch) / "root"
        valid.mkdir()
        root.mkdir()
        target.prepare(valid)
        try_once(target, first, valid, root)  # imports, before memory is limited
        before = _peak_mb()
        _limit_memory()
        for seed in range(first, first + trials):
            started = time.perf_counter()
            outcome = _timed(target, seed, valid, root)
            slowest = max(slowest, time.perf_counter() - started)
            counts[outcome.kind] += 1
            code_run += outcome.code_run
            outside += bool(outcome.outside)
            if outcome.kind == "traceback" or outcome.code_run or outcome.outside:
                said = outcome.error or f"code {outcome.code_run}, wrote {outcome.outside}"
                faults.append({"target": target.name, "seed": seed, "error": said})
    return {
        "target": target.name, "trials": trials, "clean_errors": counts["clean"],
        "accepted": counts["accepted"], "tracebacks": counts["traceback"], "code_run": code_run,
        "writes_outside": outside, "slowest_s": round(slowest, 2),
        "memory_mb": round(_peak_mb() - before),
    }, faults  # fmt: skip


def _timed(target: Any, seed: int, valid: Path, root: Path) -> Outcome:
    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {_SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(_SECONDS)
    try:
        return try_once(target, seed, valid, root)
    finally:
        signal.alarm(0)


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, used + _BYTES))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
