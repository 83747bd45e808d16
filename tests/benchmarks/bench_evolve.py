"""What snapshots cost to probe; on a quiet machine: ``pytest tests/benchmarks/bench_evolve.py -s``.

CPU seconds of recording S snapshots, decoding included, against S bare forward passes of the same
batches. Finishing a run (ranks, quantiles, writing) costs the same for any number of images and is
printed by itself.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.models.checkpoint import save_checkpoint
from polysem.models.load import load_model
from polysem.models.snapshots import Snapshot
from polysem.probe import snapshots as at_work
from polysem.probe.batches import batches
from polysem.probe.snapshots import probe_snapshots

pytestmark = pytest.mark.filterwarnings("default")

ARCH, IMAGES, BATCH, SNAPSHOTS, REPEATS = "vit_small_patch16_224", 128, 64, 2, 1


class Noise(ImageData):
    """Pictures larger than the model takes, drawn anew each time."""

    fingerprint = "noise"

    def __init__(self) -> None:
        super().__init__("noise", [str(i) for i in range(IMAGES)], labels=np.arange(IMAGES) % 10)

    def read(self, index: int) -> Image.Image:
        pixels = np.random.default_rng(index).integers(0, 256, (280, 300, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def save_series(folder: Path) -> list[Snapshot]:
    transform = load_model(f"timm:{ARCH}").transform
    series = []
    for step in range(SNAPSHOTS):
        torch.manual_seed(step)
        state = timm.create_model(ARCH).state_dict()
        file = folder / f"{step}.safetensors"
        save_checkpoint(file, ARCH, {}, state, transform=transform, step=step)
        series.append(Snapshot(step, str(file), ""))
    return series


def test_snapshots_cost_little_more_than_bare_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series, source = save_series(tmp_path), Noise()
    recorded: list[float] = []
    record = at_work.record

    def timed(*args: Any, **options: Any) -> tuple[bool, float]:
        started = time.process_time()
        found = record(*args, **options)
        recorded.append(time.process_time() - started)
        return found

    monkeypatch.setattr(at_work, "record", timed)
    loaded = load_model(series[0].checkpoint)
    started = time.process_time()
    decoded = [d.pixels for d in batches(source, loaded.transform, BATCH)]
    print(f"decoding once {time.process_time() - started:.1f} CPU s")
    ratios = []
    for repeat in range(REPEATS):
        started = time.process_time()
        with torch.inference_mode():
            for _ in range(SNAPSHOTS):
                for pixels in decoded:
                    assert pixels is not None
                    loaded.model(loaded.transform.normalize(pixels))
        bare = time.process_time() - started
        recorded.clear()
        started = time.process_time()
        assert probe_snapshots(
            series, source, [tmp_path / f"{repeat}_{s.step}" for s in series],
            device=torch.device("cpu"), batch_size=BATCH, progress=False,
        )  # fmt: skip
        rest = time.process_time() - started - sum(recorded)
        ratios.append(sum(recorded) / bare)
        print(
            f"{SNAPSHOTS} bare passes {bare:.1f} CPU s, recorded {sum(recorded):.1f} "
            f"({', '.join(f'{seconds:.1f}' for seconds in recorded)}), ratio {ratios[-1]:.3f}; "
            f"loading and finishing {rest:.1f}"
        )
    print(f"median ratio {statistics.median(ratios):.3f}")
    assert statistics.median(ratios) <= 1.1
