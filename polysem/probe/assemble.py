"""From what the processes of a probe have kept to the run: the last step, on the first of them."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import xarray as xr

from polysem.errors import DataError
from polysem.probe import describe
from polysem.probe.accumulators import rank_error
from polysem.probe.recorder import Recorder
from polysem.probe.weight_overlap import weight_cosine
from polysem.sites import parse_site
from polysem.store.journal import Journal
from polysem.store.writer import RunWriter

__all__ = ["assemble"]

#: Rows of one row group of images.parquet: the same however the images were cut on the way.
_ROWS = 1 << 16


def assemble(
    recorder: Recorder, journal: Journal, *, overwrite: bool, interrupted: bool, seconds: float
) -> None:
    """Write everything and put the run in its place.

    Parameters
    ----------
    recorder : Recorder
        With the statistics of all processes.
    journal : Journal
        With the images of all processes.
    overwrite : bool
        Whether a run that is there is replaced.
    interrupted : bool
        Whether this is not all of the data.
    seconds : float
        Time that recording took.

    Raises
    ------
    DataError
        If no image could be read.
    RunError
        If the network never reached a site, or the disk refuses.
    """
    source = recorder.source
    if not recorder.n_images and interrupted:
        raise DataError("interrupted before the first batch was done; no run was written")
    if not recorder.n_images:
        first = recorder.skipped[0]
        raise DataError(
            f"none of the {len(recorder.skipped)} images of {source.name} could be read; "
            f"the first is {first['key']!r}: {first['reason']}"
        )
    with RunWriter(journal.out, overwrite=overwrite, place=journal.run_folder) as writer:
        seen: list[int] = []
        for rows in _row_groups(_per_image(recorder, journal, writer)):
            writer.add_images(rows)
            if source.concepts is not None:
                seen += rows["image"].to_pylist()
        if source.concepts is not None:
            writer.write_table("shown", describe.shown_table(source, seen))
        described, tables = {}, []
        for name, site in recorder.sites.items():
            overlap = weight_cosine(recorder.loaded.model, site.site)
            units = site.result(weight_cosine=overlap)
            writer.write_units(name, units)
            tables.append(describe.unit_table(name, units))
            described[name] = {
                "dims": list(site.site.dims),
                "unit": site.site.unit_dim,
                "n_units": units.sizes["unit"],
                "pools": list(site.pools),
                "tails": list(site.tails),
                "signed": site.signed,
                "grid": site.grid if "top_map" in units else None,
            }
        writer.write_table("units", pd.concat(tables, ignore_index=True))
        if recorder.smoothing is not None:
            writer.write_table("smoothing", recorder.smoothing.table())
        if recorder.head_sites or recorder.pattern_sites:
            recorded = recorder.head_sites or [f"{n}.hook_z" for n in recorder.pattern_sites]
            layers = [parse_site(n).layer for n in recorded]
            writer.write_heads(xr.Dataset(coords={"layer": layers}))
        writer.finish(
            {
                "status": "interrupted" if interrupted else "complete",
                "n_images": recorder.n_images,
                "model": describe.describe_model(recorder.loaded),
                "data": describe.describe_data(source),
                "sites": described,
                "embedding": None if recorder.embedder is None else recorder.embedder.attrs,
                "options": recorder.options,
                "quantile_rank_error": rank_error(
                    int(recorder.options["sample"]), recorder.n_images
                ),
                "skipped": recorder.skipped,
                "notes": recorder.notes,
                "seconds": round(seconds, 3),
                "processes": journal.launch.count,
                "versions": describe.describe_versions(),
            }
        )


def _per_image(recorder: Recorder, journal: Journal, writer: RunWriter) -> Iterator[pa.Table]:
    """Hand arrays of single images to the writer, and yield their rows."""
    for rows, arrays in journal.segments():
        for name, values in arrays.items():
            kind, _, of = name.partition("/")
            if kind == "heads":
                writer.add_heads(of, values)
            elif kind == "pooled":
                writer.add_pooled(of, values)
            else:
                assert recorder.embedder is not None
                writer.add_embeddings(values, recorder.embedder.attrs)
        yield rows


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows, so many at a time."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= _ROWS:
            joined = pa.concat_tables(waiting)
            yield joined[:_ROWS]
            waiting = [joined[_ROWS:]]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)
