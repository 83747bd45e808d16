"""The overview of a run: how its sites and heads differ, on one page."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import offset_copy

from polysem.report.page import (
    GREY,
    INK,
    INNER,
    LIGHT,
    MARGIN,
    WIDTH,
    figure_of,
    page,
    panel,
    styled,
    text_width,
    write,
    write_notes,
    write_title,
)  # fmt: skip
from polysem.report.panels import draw_spread
from polysem.report.unit import described
from polysem.sites import parse_site
from polysem.store.run import Run

__all__ = ["accuracy", "run_overview"]

#: A site of at most so many units is drawn as points, which quantiles would misrepresent.
_FEW = 20

#: Kurtosis above which the axis becomes logarithmic beyond 1.
_FAR = 12.0

_HEADS = {
    "output_norm": "Length of head outputs",
    "pattern_entropy": "Entropy of patterns, nats",
    "pattern_distance": "Attention distance, patches",
}

#: Rows of a per-image array that are read at a time.
_SLAB = 16_384


def accuracy(run: Run) -> float | None:
    """Return the share of images that the model gets right; None where that means nothing."""
    correct = run.images["correct"].dropna()
    return float(correct.astype(float).mean()) if len(correct) else None


@styled
def run_overview(run: Run) -> Figure:
    """Draw what tells the sites of a run apart.

    Kurtosis and sparsity of all units and the share of dead ones, site by site; and as layer by
    head what was measured of heads.

    Returns
    -------
    Figure
        Ten inches wide.
    """
    groups = _groups(run.sites)
    table = run.table("units")
    heads = run.heads if (run.path / "heads.zarr").is_dir() else None
    maps = [] if heads is None else [name for name in _HEADS if name in heads]
    labels = [label for sites in groups.values() for label in sites.values()]
    slant = 40 if any(len(label) > 3 for label in labels) else 0
    reach = max(text_width(label, size=7) for label in labels) * math.sin(math.radians(slant))
    tall, short, foot = 1.45, 0.6, 0.4 + reach
    map_height = 0.0
    if heads is not None:
        map_height = min(2.6, max(0.9, 0.17 * heads.sizes["layer"]))
    rows: list[tuple[str, float, Callable[[Axes, float, pd.DataFrame], None]]] = [
        ("Excess kurtosis over images", tall, _column("kurtosis")),
        ("Hoyer sparsity over images", tall, _column("sparsity")),
    ]
    if table["dead"].any():
        rows.append(("Dead units", short, _draw_dead))
    between = 0.42
    height = 1.0 + sum(tallness + between for _, tallness, _ in rows) - between + foot
    height += (map_height + 0.8 if maps else 0) + 0.3
    sheet = page(WIDTH, height)
    write_title(sheet, run.manifest["model"]["name"], _facts(run, table))
    top = 1.0
    for i, (heading, tallness, draw) in enumerate(rows):
        write(sheet, MARGIN, top - 0.08, heading, size=8, weight="bold")
        axes = panel(sheet, MARGIN + 0.4, top, INNER - 0.4, tallness)
        places = _set_sites(axes, groups, names=i == len(rows) - 1, slant=slant, reach=reach)
        for site, x in places.items():
            draw(axes, x, table[table["site"] == site])
        top += tallness + between
        if heading.startswith("Excess"):
            _far_axis(axes, table["kurtosis"])
        elif heading.startswith("Hoyer"):
            axes.set_ylim(-0.02, 1.02)
        else:
            axes.set_ylim(0, max(0.1, 1.1 * float(table.groupby("site")["dead"].mean().max())))
            axes.yaxis.set_major_locator(MaxNLocator(2))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    top += foot - between + 0.35
    for i, name in enumerate(maps):
        assert heads is not None
        width = (INNER - 2 * 0.5) / 3
        left = MARGIN + i * (width + 0.5)
        write(sheet, left, top - 0.08, _HEADS[name], size=8, weight="bold")
        _draw_heads(sheet, (left, top, width, map_height), _mean_over_images(heads[name]))
    note = (
        "Units of a site: median (dot), middle half (bar), 1 to 99 % (line), or a point each where "
        f"there are at most {_FEW}."
    )
    write_notes(sheet, height - 0.14, [note])
    return figure_of(sheet)


def _facts(run: Run, table: pd.DataFrame) -> str:
    facts = [described(run).split(", ", 1)[1]]
    if (share := accuracy(run)) is not None:
        facts.append(f"accuracy {100 * share:.1f} %")
    n_dead = int(table["dead"].sum())
    facts.append(f"{len(table):,} units at {len(run.sites)} sites, {n_dead:,} dead")
    return ", ".join(facts)


def _groups(sites: list[str]) -> dict[str, dict[str, str]]:
    """Return sites of the same kind together, in network order, each with a short label."""
    groups: dict[str, dict[str, str]] = {}
    for name in sites:
        site = parse_site(name)
        if site.layer is not None:
            groups.setdefault(f"blocks.*.{site.part}", {})[name] = str(site.layer)
        elif "channel" in site.dims:
            groups.setdefault("*.hook_post", {})[name] = name.removesuffix(".hook_post")
        else:
            groups.setdefault(name, {})[name] = ""
    return groups


def _set_sites(
    axes: Axes, groups: dict[str, dict[str, str]], *, names: bool, slant: float, reach: float
) -> dict[str, float]:
    """Set up the axis of sites, with gaps between groups, and return where each site is."""
    places: dict[str, float] = {}
    labels, x = [], 0.0
    for group, sites in groups.items():
        first = x
        for site, label in sites.items():
            places[site] = x
            labels.append(label)
            x += 1
        if names:
            axes.text(
                (first + x - 1) / 2, 0, group,
                transform=offset_copy(
                    axes.get_xaxis_transform(), figure_of(axes), 0, -0.2 - reach
                ),
                ha="center", va="top", color=INK, size=7,
            )  # fmt: skip
        x += 0.8
    axes.set_xlim(-0.7, x - 0.8 - 0.3)
    axes.set_xticks(list(places.values()), labels if names else [])
    if slant and names:
        for tick in axes.get_xticklabels():
            tick.set(rotation=slant, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color=LIGHT, linewidth=0.4)
    axes.set_axisbelow(True)
    return places


def _column(name: str) -> Callable[[Axes, float, pd.DataFrame], None]:
    def draw(axes: Axes, x: float, units: pd.DataFrame) -> None:
        values = units[name].dropna().to_numpy(dtype=float)
        if len(values) > _FEW:
            quantiles = np.quantile(values, (0.01, 0.25, 0.5, 0.75, 0.99))
            draw_spread(axes, x, [float(q) for q in quantiles], colour=INK, upright=True)
        else:
            axes.plot(np.full(len(values), x), values, "o", markersize=2.6, color=INK, alpha=0.6,
                      markeredgewidth=0)  # fmt: skip

    return draw


def _draw_dead(axes: Axes, x: float, units: pd.DataFrame) -> None:
    axes.bar(x, float(units["dead"].mean()), width=0.5, color=GREY)


def _far_axis(axes: Axes, kurtosis: pd.Series[float]) -> None:
    """Make the axis of kurtosis logarithmic beyond 1 where a few units are far above the rest."""
    if kurtosis.quantile(0.99) > _FAR:
        axes.set_yscale("symlog", linthresh=1, linscale=0.5)
        ticks = np.concatenate([[-1, 0], 10.0 ** np.arange(0, 9)])
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in ticks if low <= tick <= high])
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
        )
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _mean_over_images(values: xr.DataArray) -> xr.DataArray:
    """Return the mean over images [layer, head], read a slab at a time; NaN counts as missing."""
    total = np.zeros(tuple(values.sizes[dim] for dim in ("layer", "head")))
    count = np.zeros_like(total)
    for start in range(0, values.sizes["image"], _SLAB):
        slab = values.isel(image=slice(start, start + _SLAB)).transpose("image", "layer", "head")
        numbers = slab.to_numpy().astype(np.float64)
        total += np.nansum(numbers, axis=0)
        count += (~np.isnan(numbers)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return xr.DataArray(
            total / count, dims=("layer", "head"), coords={"layer": values["layer"]}
        )


def _draw_heads(sheet: Axes, box: tuple[float, float, float, float], values: xr.DataArray) -> None:
    left, top, width, height = box
    axes = panel(sheet, left + 0.3, top, width - 0.75, height)
    drawn = axes.pcolormesh(values.to_numpy(), cmap="cividis", edgecolors="white", linewidth=0.6)
    layers, n_heads = values["layer"].to_numpy(), values.sizes["head"]
    every = max(1, -(-n_heads // 12))
    axes.set_xticks(np.arange(0, n_heads, every) + 0.5, [str(h) for h in range(0, n_heads, every)])
    axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
    axes.set(xlabel="head", ylabel="layer")
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    scale = panel(sheet, left + width - 0.38, top, 0.09, height)
    bar = figure_of(sheet).colorbar(drawn, cax=scale)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=2, labelsize=6.5)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
