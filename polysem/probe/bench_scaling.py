"""How the cost of a probe grows: with images, units, exemplars and processes, in CPU seconds."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from polysem.data.dataset import ImageData
from polysem.data.shipped import shipped_file
from polysem.data.sources import load_data
from polysem.models.load import LoadedModel, load_model
from polysem.probe.accumulators import image_hash
from polysem.probe.forked import start_forked
from polysem.probe.probe import probe
from polysem.probe.site_recorder import Batch, SiteRecorder
from polysem.sites import parse_site

__all__ = ["MEANINGS", "bench_scaling"]

#: What the columns of the table hold.
MEANINGS: Mapping[str, str] = {
    "axis": "what grows from line to line: images, units, top_k (one site by itself, without a "
    "network), or processes (a whole probe)",
    "images": "images recorded",
    "units": "units recorded",
    "top_k": "exemplars kept for each unit",
    "processes": "processes that share the images",
    "cpu_s": "CPU seconds of recording, in all processes; of processes: of all that they do",
    "finish_s": "CPU seconds from the last image to the statistics; NaN for processes",
    "state_mb": "memory of the statistics, MiB: does not grow with images; NaN for processes",
    "peak_mb": "peak resident memory of the largest process, MiB; NaN for a site by itself",
    "wall_s": "wall-clock seconds, which on a machine with other work say little",
}

_SITE = "blocks.0.mlp.hook_post"
_TOKENS, _BATCH, _SAMPLE = 49, 64, 256


def bench_scaling(
    *,
    images: Sequence[int] = (256, 512, 1024, 2048, 4096),
    units: Sequence[int] = (128, 256, 512, 1024, 2048),
    top_k: Sequence[int] = (4, 8, 16, 32, 64),
    processes: Sequence[int] = (1, 2, 4),
    n_probed: int = 2048,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure what one site's statistics cost by themselves, and whole probes in processes.

    A site sees new normal activations [64 images, 49 tokens, unit] in each batch, as of signed
    units, and keeps all that a probe keeps by default; one thing grows while the others stay at
    1,024 images, 512 units and 16 exemplars. The probe is of a small shipped model on drawn
    images.

    Parameters
    ----------
    images, units, top_k, processes : sequence of int
        What each grows through.
    n_probed : int, default 2048
        Images of the whole probe.
    report : callable
        Told about each finished line.

    Returns
    -------
    DataFrame
        Its columns as in `MEANINGS`.
    """
    rows: list[dict[str, Any]] = []
    standard = {"images": 1024, "units": 512, "top_k": 16}
    _site(128, 128, 16)  # warm up
    for axis, values in {"images": images, "units": units, "top_k": top_k}.items():
        for value in values:
            size = standard | {axis: value}
            row = {"axis": axis, **size, "processes": 1, **_site(*size.values())}
            rows.append(row)
            report("  ".join(f"{k} {v}" for k, v in row.items()))
    spec = str(shipped_file("models", "cifar10_cpu_vit.safetensors"))
    loaded, source = load_model(spec), load_data(f"shapes:train?n={n_probed}&size=32")
    for count in processes:
        row = {"axis": "processes", **_probes(loaded, source, count)}
        rows.append(row)
        report("  ".join(f"{k} {v}" for k, v in row.items()))
    table = pd.DataFrame(rows, columns=list(MEANINGS))
    table.attrs = {"columns": dict(MEANINGS)}
    return table


def _site(n_images: int, n_units: int, top_k: int) -> dict[str, float]:
    recorder = SiteRecorder(
        parse_site(_SITE), signed=True, n_prefix_tokens=0, has_class_token=False, n_classes=10,
        top_k=top_k, sample=min(_SAMPLE, n_images), grid=(7, 7),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    cpu_s, started = 0.0, time.perf_counter()
    with torch.inference_mode():
        for indices in torch.arange(n_images).split(_BATCH):
            shape = (len(indices), _TOKENS, n_units)
            activation = torch.randn(shape, generator=generator)
            hashes = torch.from_numpy(image_hash([str(i) for i in indices.tolist()]))
            batch = Batch(indices, indices, hashes, indices % 10)
            before = time.process_time()
            recorder.update(activation, batch)
            cpu_s += time.process_time() - before
        state = sum(
            tensor.nbytes for part in recorder.state_dict().values() for tensor in part.values()
        )
        before = time.process_time()
        recorder.result()
    return {
        "cpu_s": round(cpu_s, 4),
        "finish_s": round(time.process_time() - before, 4),
        "state_mb": round(state / 2**20, 3),
        "peak_mb": np.nan,
        "wall_s": round(time.perf_counter() - started, 3),
    }


def _probes(loaded: LoadedModel, source: ImageData, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        measured = multiprocessing.get_context("fork").Queue()
        started = time.perf_counter()
        workers = [
            start_forked(_probe, loaded, source, Path(folder) / "run", number, count, measured)
            for number in range(count)
        ]
        found = [measured.get() for _ in workers]
        for worker in workers:
            worker.join()
        wall_s = time.perf_counter() - started
    return {
        "images": len(source),
        "units": found[0][2],
        "top_k": 16,
        "processes": count,
        "cpu_s": round(sum(cpu_s for cpu_s, _, _ in found), 3),
        "finish_s": np.nan,
        "state_mb": np.nan,
        "peak_mb": round(max(peak for _, peak, _ in found), 1),
        "wall_s": round(wall_s, 3),
    }


def _probe(
    loaded: LoadedModel, source: ImageData, out: Path, number: int, count: int, measured: Any
) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_RANK": str(number)}
    before = time.process_time()
    run = probe(loaded, source, out=out, batch_size=_BATCH, device="cpu", progress=False)
    cpu_s = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    measured.put((cpu_s, peak, sum(site["n_units"] for site in run.manifest["sites"].values())))
