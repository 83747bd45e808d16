"""polysem: find out what the neurons and attention heads of vision transformers do.

The names below are imported on first use, so that ``import polysem`` itself costs nothing;
polysem's models appear in timm's registry as soon as timm is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from polysem import _timm

__all__ = [
    "HookedVisionModel",
    "Run",
    "bcosify",
    "circuits",
    "compare_runs",
    "describe_neurons",
    "edges",
    "evolve",
    "explain",
    "heads",
    "load_data",
    "load_model",
    "localise",
    "probe",
    "sanity_checks",
    "write_report",
]

_HOME = {
    "HookedVisionModel": "polysem.models.hooked",
    "Run": "polysem.store.run",
    "bcosify": "polysem.models.bcosify",
    "compare_runs": "polysem.analysis.comparison",
    "circuits": "polysem.explain.circuits",
    "describe_neurons": "polysem.describe.describe",
    "edges": "polysem.explain.edges",
    "evolve": "polysem.evolution",
    "explain": "polysem.explain",
    "heads": "polysem.probe.heads",
    "load_data": "polysem.data.sources",
    "load_model": "polysem.models.load",
    "localise": "polysem.explain.localise",
    "probe": "polysem.probe",
    "sanity_checks": "polysem.explain.sanity",
    "write_report": "polysem.cli.report",
}

_timm.register_models_on_import()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'polysem' has no attribute {name!r}")
    if name in ("explain", "probe"):  # the package itself, which can be called
        return import_module(_HOME[name])
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
