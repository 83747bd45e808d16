"""What a probe costs beside the bare forward pass, in time and memory, measured in one run."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.models.load import LoadedModel, load_model
from polysem.probe.assemble import assemble
from polysem.probe.batches import Decoded
from polysem.probe.recorder import Recorder
from polysem.store.journal import Journal

__all__ = ["bench_probe"]


@dataclass(frozen=True)
class _Case:
    """One line of the table."""

    model: str
    n_images: int
    batch_size: int = 64
    patterns: bool = False
    repeats: int = 1

    @property
    def label(self) -> str:
        return f"{self.model.removeprefix('timm:')}{' --patterns' if self.patterns else ''}"


def bench_probe(
    *,
    model: str = "timm:vit_small_patch16_224",
    n_images: int = 256,
    repeats: int = 5,
    memory_model: str = "timm:bcos_vit_micro_patch8_64",
    memory_images: tuple[int, ...] = (1_000, 10_000),
    device: str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure `probe` against the bare forward pass on images in memory.

    Both run the same batches through the same model, without gradients and with fused attention;
    `repeats` pairs are interleaved and the median of their ratios is given. A probe's time runs
    from setting the hooks to the last image recorded; finishing the run (ranks, quantiles,
    writing) costs the same for any number of images, and is told to `report` by itself. Peak
    memory is that of a process of its own, for the whole probe.

    Parameters
    ----------
    model : str
        Probed without and with ``patterns``, `n_images` images each.
    memory_model : str
        Probed once on each of `memory_images`, to show how memory grows with the data.
    device : str
        Where it runs.
    report : callable
        Told about each finished line.

    Returns
    -------
    DataFrame
        Columns model, images, bare_s, probe_s, ratio, peak_mb.
    """
    cases = [
        _Case(model, n_images, repeats=repeats),
        _Case(model, n_images, patterns=True, repeats=repeats),
        *(_Case(memory_model, n, batch_size=100) for n in memory_images),
    ]
    rows = []
    for case in cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak of its own
            row, finish_s = pool.apply(_measure, (case, device))
        rows.append(row)
        report("  ".join(f"{k} {v}" for k, v in row.items()) + f"  (finishing {finish_s:.1f} s)")
    return pd.DataFrame(rows)


def _measure(case: _Case, device: str) -> tuple[dict[str, str | int | float], float]:
    torch.manual_seed(0)
    loaded = load_model(case.model, device=device)
    source = _Noise(case.n_images, loaded.transform.size)
    place = torch.device(device)
    _bare(loaded, source, case, place, limit=case.batch_size)  # warm up
    pairs, finish_s = [], 0.0
    for _ in range(case.repeats):
        bare = _bare(loaded, source, case, place)
        probed, finish_s = _probe(loaded, source, case, place)
        pairs.append((bare, probed))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row: dict[str, str | int | float] = {
        "model": case.label,
        "images": case.n_images,
        "bare_s": round(statistics.median(bare for bare, _ in pairs), 3),
        "probe_s": round(statistics.median(probed for _, probed in pairs), 3),
        "ratio": round(statistics.median(probed / bare for bare, probed in pairs), 4),
        "peak_mb": round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1),
    }
    return row, finish_s


class _Noise(ImageData):
    """Pixels that cost nothing to read and nothing to keep, with ten classes."""

    fingerprint = "noise"

    def __init__(self, n_images: int, size: tuple[int, int]) -> None:
        super().__init__(
            "noise",
            [str(i) for i in range(n_images)],
            labels=np.arange(n_images) % 10,
            classes=[str(i) for i in range(10)],
        )
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(256, (2048, 3, *size), dtype=torch.uint8, generator=generator)[
            : min(n_images, 2048 if size[0] <= 64 else 256)
        ].clone()

    def read(self, index: int) -> Image.Image:
        """Return image number `index`."""
        return Image.fromarray(self.pixels[index % len(self.pixels)].permute(1, 2, 0).numpy())

    def batches(self, size: int) -> Iterator[Decoded]:
        """Yield all images as the probe's reader does; pixels repeat after a while."""
        for indices in torch.arange(len(self)).split(size):
            yield Decoded(indices.tolist(), self.pixels[indices % len(self.pixels)], [])


def _bare(
    loaded: LoadedModel, source: _Noise, case: _Case, device: torch.device, limit: int | None = None
) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for decoded in source.batches(case.batch_size):
            assert decoded.pixels is not None
            loaded.model(loaded.transform.normalize(decoded.pixels.to(device)))
            if limit is not None and decoded.indices[-1] >= limit - 1:
                break
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _probe(
    loaded: LoadedModel, source: _Noise, case: _Case, device: torch.device
) -> tuple[float, float]:
    """Return the seconds of recording and of finishing."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        recorder = Recorder(
            loaded, source, sites=None, top_k=16, pooled=False,
            patterns=case.patterns, sample=1024, device=device, precision="fp32",
        )  # fmt: skip
        with Journal(Path(folder) / "run", {}) as recorder.journal:
            with recorder.recording():
                for decoded in source.batches(case.batch_size):
                    recorder.update(decoded)
            recorded = time.perf_counter() - started
            recorder.flush()
            assemble(recorder, recorder.journal, overwrite=False, interrupted=False, seconds=0)
        return recorded, time.perf_counter() - started - recorded
