"""All pictures of an evolution into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polysem.report.evolution_maps import evolution_maps
from polysem.report.exemplars import Images
from polysem.report.label_flow import label_flow
from polysem.report.page import save
from polysem.report.score_ridges import score_ridges
from polysem.report.unit_strip import unit_strip
from polysem.store.evolution import Evolution

__all__ = ["draw_evolution"]


def draw_evolution(
    evolution: Evolution, images: Images, units: Sequence[tuple[str, int]]
) -> list[dict[str, Any]]:
    """Draw scores, labels, layers and some units into ``pictures``.

    Parameters
    ----------
    evolution : Evolution
    images : callable
        As in `figures.contact_sheet`.
    units : sequence of (str, int)
        Sites and units whose exemplars are drawn.

    Returns
    -------
    list of dict
        site, unit and picture (its path in the folder) of each unit drawn.
    """
    folder = evolution.path / "pictures"
    save(score_ridges(evolution), folder / "scores.png")
    save(evolution_maps(evolution), folder / "layers.png")
    flow, place = label_flow(evolution), folder / "labels.png"
    if flow is None:
        place.unlink(missing_ok=True)  # of an earlier evolution that had labels
    else:
        save(flow, place)
    shown = []
    for site, unit in units:
        file = folder / f"unit_{_file_name(site)}_{unit}.png"
        save(unit_strip(evolution, site, unit, images), file)
        shown.append({"site": site, "unit": unit, "picture": f"{folder.name}/{file.name}"})
    return shown


def _file_name(site: str) -> str:
    return Path(site.replace("/", "_")).name
