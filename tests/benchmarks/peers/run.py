"""polysem beside its peers: the same work, the same inputs, each in its own environment.

    python tests/benchmarks/peers/run.py --out reports/peers
    python tests/benchmarks/peers/run.py --out /tmp/peers --size tiny --environments ~/peers

Installs the peers below ``--environments`` (once; needs the package index), then measures each row
in a process of its own and writes table.csv, table.png and machine.json. What a row does is said
by ``by_<peer>.py``; how it is measured, by worker.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import repair  # noqa: F401  before timm
import torch
from drawing import draw_table
from environments import ENVIRONMENTS, Installed, install
from inputs import write
from sizes import SIZES

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One row: who does what, by which file."""

    task: str
    peer: str
    module: str
    how: str = ""
    options: dict[str, Any] = field(default_factory=dict)


_OURS = "polysem"
_HOOKS, _CACHE = {"way": "hooks"}, {"way": "cache"}
ROWS = (
    Row("record", _OURS, "by_polysem", "all statistics of a probe"),
    Row("record", "formulations", "by_hand", "plain hooks on timm"),
    Row("record", "nnsight", "by_nnsight", "pooled in the trace"),
    Row("record", "semanticlens", "by_semanticlens", "exemplars only"),
    Row("record", "ViT-Prisma", "by_prisma", "pooled in hooks", _HOOKS),
    Row("record", "ViT-Prisma", "by_prisma", "run_with_cache", _CACHE),
    Row("record", "TransformerLens", "by_transformer_lens", "pooled in hooks", _HOOKS),
    Row("record", "TransformerLens", "by_transformer_lens", "run_with_cache", _CACHE),
    Row("exemplars", _OURS, "by_polysem", "order-free top-k"),
    Row("exemplars", "semanticlens", "by_semanticlens", "ActMax, bfloat16"),
    Row("exemplars", "formulations", "by_hand", "topk over kept and batch"),
    Row("label", _OURS, "by_polysem", "soft-WPMI in blocks"),
    Row("label", "formulations", "by_hand", "soft-WPMI as stated"),
    Row("label_by_mean", _OURS, "by_polysem", "mean embedding"),
    Row("label_by_mean", "semanticlens", "by_semanticlens", "mean embedding"),
    Row("monosemanticity", _OURS, "by_polysem", "closed form, float64"),
    Row("monosemanticity", "formulations", "by_hand", "all pairs, float32"),
    Row("clarity", _OURS, "by_polysem", "float64"),
    Row("clarity", "semanticlens", "by_semanticlens", "float32"),
)


def main() -> None:
    asked = _arguments()
    asked.environments.mkdir(parents=True, exist_ok=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    installed = {_OURS: Installed(Path(sys.executable), version("polysem"))}
    for environment in ENVIRONMENTS.values():
        installed[environment.name] = install(environment, asked.environments)
        print(f"{environment.name}: {installed[environment.name]}", flush=True)
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), SIZES[asked.size])
        for number, row in enumerate(ROWS):
            if asked.task and row.task not in asked.task:
                continue
            load = os.getloadavg()[0]
            measured, problem = _measured(row, installed[row.peer], asked, Path(scratch), number)
            rows.append(
                {
                    "task": row.task, "peer": row.peer, "version": installed[row.peer].version,
                    "how": row.how, "threads": asked.threads, "load": load, **measured,
                    "problem": problem,
                }
            )  # fmt: skip
            if not problem:
                results[number] = torch.load(Path(scratch) / f"{number}.pt", weights_only=True)
                ours = next(n for n, r in enumerate(ROWS) if r.task == row.task)
                rows[-1] |= _agreement(results[ours], results[number])
            print(rows[-1], flush=True)
            _write(rows, asked.out)
    machine = {
        "cpus": os.cpu_count(), "processor": _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(), "size": asked.size, **asdict(SIZES[asked.size]),
    }  # fmt: skip
    (asked.out / "machine.json").write_text(json.dumps(machine, indent=2) + "\n", encoding="utf-8")


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    """Write table and picture, after each row anew."""
    table = _with_older(pd.DataFrame(rows), out / "table.csv")
    table["times_polysem"] = _beside_ours(table)
    table.round(4).to_csv(out / "table.csv", index=False)
    draw_table(table, out / "table.png")


def _with_older(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Return the rows with those of other tasks that an earlier call has measured, in order."""
    if file.is_file():
        older = pd.read_csv(file, keep_default_na=True)
        older["problem"] = older["problem"].astype(object).fillna("")
        others = older[~older["task"].isin(table["task"])]
        table = pd.concat([others, table], ignore_index=True)
    order = list(dict.fromkeys(row.task for row in ROWS))
    return table.sort_values("task", key=lambda tasks: tasks.map(order.index), kind="stable")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="polysem beside its peers.")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and plot")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "polysem-peers",
        help="where the peers are, or will be, installed",
    )  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--task", nargs="*", default=[], help="some tasks only; others stay as they are"
    )
    return parser.parse_args()


def _measured(
    row: Row, installed: Installed, asked: argparse.Namespace, scratch: Path, number: int
) -> tuple[dict[str, float], str]:
    """Run one row, and return what it measured or why it did not."""
    if installed.python is None:
        return {}, f"not installable here: {installed.problem}"
    job = {
        "task": row.task, "module": row.module, "options": row.options, "size": asked.size,
        "threads": asked.threads, "inputs": str(scratch), "result": f"{scratch}/{number}.pt",
        "answer": f"{scratch}/{number}.json",
    }  # fmt: skip
    (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
    own = {"PYTHONPATH": str(HERE.parents[2])} if row.peer == _OURS else {"PYTHONPATH": ""}
    quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "POLYSEM_QUIET": "1"}
    threads = {name: str(asked.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [installed.python, HERE / "worker.py", scratch / "job.json"],
        env={**os.environ, **own, **quiet, **threads}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        print(done.stderr[-3000:], file=sys.stderr)
        return {}, lines[-1][:300] if lines else f"exit code {done.returncode}"
    measured: dict[str, float] = json.loads((scratch / f"{number}.json").read_text())
    return measured, ""


def _agreement(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return how far two results are the same work: shares of equal choices, largest difference."""
    found = {}
    for key in ours.keys() & theirs.keys():
        one, other = ours[key], theirs[key]
        if one.is_floating_point():
            scale = float(one.double().abs().max())
            found[f"{key}_difference"] = float((one.double() - other.double()).abs().max()) / scale
        else:
            found["same_choices"] = float((one == other).double().mean())
    differences = [value for key, value in found.items() if key.endswith("_difference")]
    kept = {"largest_difference": max(differences)} if differences else {}
    return kept | {key: value for key, value in found.items() if key == "same_choices"}


def _beside_ours(table: pd.DataFrame) -> pd.Series[float]:
    """Return each row's CPU time in polysem's for the same task; of recording, over the bare."""
    over_bare = table.get("cpu_over_bare", table["cpu_seconds"])
    measure = over_bare.where(table["task"] == "record", table["cpu_seconds"])
    ours = measure[table["peer"] == _OURS].groupby(table["task"]).first()
    return measure / table["task"].map(ours)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
