"""Whether a long probe's memory stays as it is: sampled all the way, killed once in the middle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.data.shipped import shipped_file
from polysem.data.sources import load_data
from polysem.errors import SpecError
from polysem.models.load import LoadedModel, load_model
from polysem.probe.forked import start_forked
from polysem.probe.probe import probe
from polysem.store.run import Run

__all__ = ["MEANINGS", "bench_soak", "growth"]

#: What the columns of the table hold.
MEANINGS: Mapping[str, str] = {
    "session": "0 until the probe is killed (SIGKILL) at half of the images, then 1",
    "seconds": "wall-clock time since the session began",
    "images": "images read so far, those of the first session included",
    "rss_mb": "resident memory of the probe's process, MiB",
}

#: Share of all images after which a session counts as warm: batches, caches and buffers are there.
_WARM = 0.05


def bench_soak(
    *,
    n_images: int = 200_000,
    model: str | None = None,
    data: str | None = None,
    sites: str = "*.mlp.hook_post,hook_pooled",
    every_s: float = 1.0,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[pd.DataFrame, int]:
    """Probe many drawn images in one go, and sample how much memory the process holds.

    Parameters
    ----------
    n_images : int, default 200,000
    model, data : str, optional
        By default the shipped ``cifar10_cpu_vit``, and drawn shapes of its size.
    sites : str
        What is recorded.
    every_s : float, default 1
        Seconds between two samples.
    report : callable
        Told about what happens.

    Returns
    -------
    DataFrame
        One row a sample, its columns as in `MEANINGS`.
    int
        Images of the run that came of it.

    Raises
    ------
    SpecError
        If this machine does not tell the memory of a process (it is no Linux).
    """
    if not Path("/proc/self/statm").exists():
        raise SpecError("the soak reads memory from /proc, which only Linux has")
    loaded = load_model(model or str(shipped_file("models", "cifar10_cpu_vit.safetensors")))
    source = _Counted(load_data(data or f"shapes:train?n={n_images}&size=32"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        for session in (0, 1):
            process = start_forked(_probe, loaded, source, out, sites)
            assert process.pid is not None
            started = time.monotonic()
            while process.is_alive():
                process.join(every_s)
                rss = _rss_mb(process.pid)
                if rss is not None:
                    row = {"session": session, "seconds": round(time.monotonic() - started, 2),
                           "images": source.read_so_far.value, "rss_mb": round(rss, 2)}  # fmt: skip
                    rows.append(row)
                if session == 0 and source.read_so_far.value >= len(source) // 2:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    report(f"killed after {source.read_so_far.value:,} images")
            if session == 1 and process.exitcode != 0:
                raise RuntimeError(f"the resumed probe ended with exit code {process.exitcode}")
        n_done = int(Run.open(out).manifest["n_images"])
    table = pd.DataFrame(rows, columns=list(MEANINGS))
    table.attrs = {"columns": dict(MEANINGS)}
    return table, n_done


def growth(table: pd.DataFrame, n_images: int) -> float:
    """Return how far memory moved while images were read, as a share: 0 is flat.

    Of each session by itself, once it is warm: the medians of its tenths, largest over smallest,
    less 1; the larger of the two sessions. A median leaves out the moments of a commit.
    """
    found = []
    for _, session in table.groupby("session"):
        at = session["images"]
        warm = session[(at > at.min() + _WARM * n_images) & (at < n_images)]
        if len(warm) > 1:
            done = warm["images"] - warm["images"].min()
            tenth = (10 * done / max(1, done.max())).astype(int).clip(upper=9)
            medians = warm["rss_mb"].groupby(tenth).median()
            found.append(medians.max() / medians.min() - 1)
    return float(max(found, default=float("nan")))


class _Counted(ImageData):
    """Images that count how often they are read, for all processes to see."""

    def __init__(self, whole: ImageData) -> None:
        super().__init__(whole.name, whole.keys, labels=whole.labels, classes=whole.classes)
        self.whole, self.concepts = whole, whole.concepts
        self.read_so_far = multiprocessing.get_context("fork").Value("q", 0)

    def concept_matrix(self) -> npt.NDArray[np.bool_]:
        """Return which concepts each image shows."""
        return self.whole.concept_matrix()

    @property
    def fingerprint(self) -> str:
        """That of the images."""
        return self.whole.fingerprint

    def read(self, index: int) -> Image.Image:
        """Return image number `index`."""
        self.read_so_far.value = index + 1  # in order
        return self.whole.read(index)


def _rss_mb(pid: int) -> float | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # it has just ended
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20 or None


def _probe(loaded: LoadedModel, source: ImageData, out: Path, sites: str) -> None:
    probe(
        loaded, source, out=out, sites=sites, batch_size=256, device="cpu", commit_every=10,
        progress=False,
    )  # fmt: skip
