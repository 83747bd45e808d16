"""What explanations cost beside the bare forward pass, measured in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.explain.colour import colour
from polysem.explain.linear import linear_map, require_bcos
from polysem.explain.methods import applicable_methods
from polysem.explain.target import Target
from polysem.models.load import load_model

__all__ = ["MODELS", "bench_explain"]

#: Measured unless others are named.
MODELS = (
    "timm:bcos_vit_tiny_patch4_32",
    "timm:bcos_resnet20_32",
    "timm:vit_tiny_patch4_gap_32",
    "timm:resnet20_32",
)

#: Methods that take longer than so many forward passes are measured in fewer pairs.
_LONG, _FEW = 25, 1


def bench_explain(
    *,
    models: tuple[str, ...] = MODELS,
    batch_size: int = 16,
    n_classes: int = 10,
    repeats: int = 7,
    device: str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure every method against the bare forward pass on the same images.

    Pairs of a bare pass (inference mode, nothing recorded) and an explanation are interleaved;
    the median of their ratios is given, after one of each to warm up. ``bcos × 10 classes`` are
    the rows of W(x) of all classes from one forward pass.

    Parameters
    ----------
    models : tuple of str
        Specs of models.
    batch_size, n_classes : int
        Images, and classes of the models.
    repeats : int
        Pairs; one of methods that take very long.
    device : str
    report : callable
        Told about each finished line.

    Returns
    -------
    DataFrame
        Columns model, method, ratio: cost in bare forward passes.
    """
    rows = []
    for spec in models:
        torch.manual_seed(0)
        loaded = load_model(spec, num_classes=n_classes, device=device)
        shape = (batch_size, 3, *loaded.transform.size)
        pixels = torch.randint(256, shape, dtype=torch.uint8)
        images = loaded.transform.normalize(pixels.to(device))
        for name, work in _work(loaded.model, images, n_classes).items():
            ratio = _ratio(loaded.model, images, work, repeats)
            rows.append(
                {"model": spec.removeprefix("timm:"), "method": name, "ratio": round(ratio, 3)}
            )
            report("  ".join(str(value) for value in rows[-1].values()))
    return pd.DataFrame(rows)


def _work(model: nn.Module, images: Tensor, n_classes: int) -> dict[str, Callable[[], object]]:
    """Return everything that is measured on a model, by name."""
    found: dict[str, Callable[[], object]] = {}
    try:
        require_bcos(model)
    except SpecError:
        pass
    else:
        every = [Target(index) for index in range(n_classes)]
        found[f"bcos × {n_classes} classes"] = lambda: linear_map(model, images, every)
        found["bcos in colour"] = lambda: colour(model, images, Target(0))
    methods = applicable_methods(model)
    one = {n: (lambda m=m: m(model, images, Target(0))) for n, m in methods.items()}
    return {**dict(list(one.items())[:1]), **found, **one}


def _ratio(model: nn.Module, images: Tensor, work: Callable[[], object], repeats: int) -> float:
    def bare() -> None:
        with torch.inference_mode():
            model(images)

    first = _seconds(bare, images.device), _seconds(work, images.device)  # warms up
    few = first[1] > _LONG * first[0]
    pairs = [
        (_seconds(bare, images.device), _seconds(work, images.device))
        for _ in range(min(repeats, _FEW) if few else repeats)
    ]
    return statistics.median(took / bare_took for bare_took, took in pairs)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
