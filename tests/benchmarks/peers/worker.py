"""One row of the comparison, in a process of its own: measured, and its result kept.

    python worker.py JOB.json

The job says what to run and where the answer goes; `run.py` writes it.
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import repair  # noqa: F401  before timm
import torch
from inputs import draw, network, normalise, pictures
from sizes import SIZES, Sizes
from torch import Tensor

Measured = dict[str, float]

#: Of how many batches one is also run bare: by timm, and by the peer's own form of the network.
_BARE_EVERY, _OWN_EVERY = 2, 4


class _Clock:
    """Wall and CPU seconds of whatever runs inside; each use is one entry of `wall` and `cpu`."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._started
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def record(module: Any, options: dict[str, Any], folder: Path, sizes: Sizes) -> tuple[Any, ...]:
    """Measure recording beside timm's bare forward and the peer's own, batch by batch in turn."""
    model, pixels = network(folder, sizes), pictures(folder)
    batches = pixels.split(sizes.batch)
    own = getattr(module.recorder(model, sizes.top, **options), "bare", None)
    peer = module.recorder(model, sizes.top, **options)  # the other has its warm-up behind it
    takes_pixels = getattr(peer, "pixels", False)

    def forward(batch: Tensor) -> None:
        with torch.inference_mode():
            model(normalise(batch))

    for _ in range(2):
        forward(batches[0])
        if own is not None:
            own(normalise(batches[0]))
    before = _peak_mb()
    warm = module.recorder(model, sizes.top, **options)
    warm.batch(batches[0] if takes_pixels else normalise(batches[0]))
    getattr(module, "forget", id)(warm)
    del warm
    bare, owns, recorded, finish = _Clock(), _Clock(), _Clock(), _Clock()
    for number, batch in enumerate(batches):
        if number % _BARE_EVERY == 0:
            with bare:
                forward(batch)
        if own is not None and number % _OWN_EVERY == 0:
            with owns:
                own(normalise(batch))
        with recorded:
            peer.batch(batch if takes_pixels else normalise(batch))
    peak = _peak_mb()
    with finish:
        result = peer.result()
    return result, {
        "seconds": sum(recorded.wall), "cpu_seconds": sum(recorded.cpu),
        "bare_cpu_seconds": sum(bare.cpu) * len(batches) / len(bare.cpu),
        "finish_seconds": sum(finish.wall),
        "over_bare": _median_ratio(recorded.wall[::_BARE_EVERY], bare.wall),
        "cpu_over_bare": _median_ratio(recorded.cpu[::_BARE_EVERY], bare.cpu),
        "cpu_over_own_bare": (
            _median_ratio(recorded.cpu[::_OWN_EVERY], owns.cpu)
            if owns.cpu
            else _median_ratio(recorded.cpu[::_BARE_EVERY], bare.cpu)
        ),
        "memory_mb": peak - before,
    }  # fmt: skip


def exemplars(module: Any, options: dict[str, Any], folder: Path, sizes: Sizes) -> tuple[Any, ...]:
    """Measure the search for exemplars alone, in activations given batch by batch."""
    (activations,) = draw("exemplars", sizes)

    def search() -> Tensor:
        found = module.Search(sizes.units, sizes.top)
        for start in range(0, sizes.searched, 64):
            found.update(activations[start : start + 64], start)
        return found.result()

    return _repeated(search, sizes.repeats, key="top_image")


def _whole(task: str, key: str) -> Callable[..., tuple[Any, ...]]:
    """Return the measurement of a function of drawn tensors."""

    def measured(module: Any, options: dict[str, Any], folder: Path, sizes: Sizes) -> Any:
        given = draw(task, sizes)
        if task == "label_by_mean":
            rows = given[0].topk(sizes.top, dim=0).indices.T
            given = (rows, *given[1:])
        work = getattr(module, task)
        return _repeated(lambda: work(*given), sizes.repeats, key=key)

    return measured


TASKS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "record": record,
    "exemplars": exemplars,
    "label": _whole("label", "label"),
    "label_by_mean": _whole("label_by_mean", "label"),
    "monosemanticity": _whole("monosemanticity", "score"),
    "clarity": _whole("clarity", "score"),
}


def _repeated(work: Callable[[], Tensor], repeats: int, *, key: str) -> tuple[Any, Measured]:
    before, clock = _peak_mb(), _Clock()
    for _ in range(repeats + 1):
        with torch.no_grad(), clock:
            found = work()
    return (
        {key: found},
        {
            "seconds": statistics.median(clock.wall[1:]),  # the first warms up
            "cpu_seconds": statistics.median(clock.cpu[1:]),
            "memory_mb": _peak_mb() - before,
        },
    )


def _median_ratio(these: list[float], those: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    module = importlib.import_module(job["module"])
    folder = Path(job["inputs"])
    task = TASKS[job["task"]]
    result, measured = task(module, job["options"], folder, SIZES[job["size"]])
    torch.save({key: value.clone() for key, value in result.items()}, job["result"])
    Path(job["answer"]).write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
