"""The neuron atlas: every face of every unit, to be searched, sorted and opened."""

from __future__ import annotations

from typing import Any

import pandas as pd

from polysem.report.site.cards import SHARD, cells_of, write_cards
from polysem.report.site.faces import Score, all_faces, missing_tables, scores_of
from polysem.report.site.parts import Content, Missing, Shown, rounded, write_data
from polysem.report.unit import class_name
from polysem.sites import parse_site
from polysem.store.run import Run

__all__ = ["atlas"]

#: What units of a part of the network are called, for the choice of sites.
_PARTS = {
    "mlp.hook_post": "MLP neurons",
    "mlp.hook_pre": "MLP neurons before the activation",
    "attn.hook_z": "Heads",
    "hook_resid_pre": "Residual stream, before the block",
    "hook_resid_mid": "Residual stream, between attention and MLP",
    "hook_resid_post": "Residual stream, after the block",
    "hook_attn_out": "Attention outputs",
    "hook_mlp_out": "MLP outputs",
    "hook_pooled": "Pooled features",
    "hook_post": "Channels",
}

#: Scores that the atlas is sorted by at first, the first one that there is, and which end first.
_FIRST = (("auroc", True), ("excess_rank", False), ("kurtosis", True))


def atlas(shown: Shown) -> Content:
    """Write the data of the atlas and return its page."""
    run = shown.run
    faces = all_faces(run)
    scores = scores_of(run, faces)
    write_cards(shown, faces, shown.sprites)
    data = write_data(shown, "atlas", _payload(run, faces, scores))
    by, descending = next(
        ((name, down) for name, down in _FIRST if any(s.name == name for s in scores)),
        ("", True),
    )
    missing = [*missing_tables(run), *_missing_on_cards(run)]
    if shown.sprites.missing and len(shown.sprites.missing) == int(
        (shown.sprites.slots >= 0).sum()
    ):
        command = f"polysem report {run.path} --data WHERE --out DIR"
        missing.insert(0, Missing("Images of exemplars", command))
    return Content(
        {
            "n_faces": len(faces),
            "n_units": len(faces.drop_duplicates(["site", "unit"])),
            "two_tails": faces["tail"].nunique() > 1,
            "scores": scores,
            "sort_by": by,
            "descending": descending,
            "sites": _choices(run),
            "clusters": _clusters(run),
            "named": "named" in faces,
            "faceted": "facets" in faces,
        },
        data=[f"data/{shown.key}/images.js", data],
        missing=missing,
    )


def _payload(run: Run, faces: pd.DataFrame, scores: list[Score]) -> dict[str, Any]:
    sites = {site: i for i, site in enumerate(run.sites)}
    words, of_face = _words(run, faces)
    payload: dict[str, Any] = {
        "shard": SHARD,
        "sites": [
            {
                "name": site,
                "kind": facts["unit"],
                "layer": parse_site(site).layer,
                "part": parse_site(site).part,
                "grid": facts.get("grid"),
                "cells": cells_of(run, site),
            }
            for site, facts in run.manifest["sites"].items()
        ],
        "classes": [class_name(i, run.classes) for i in range(len(run.classes or ()))],
        "scores": [{"name": s.name, "title": s.title, "meaning": s.meaning} for s in scores],
        "site": faces["site"].map(sites).tolist(),
        "unit": faces["unit"].tolist(),
        "lower": (faces["tail"] == "lower").astype(int).tolist(),
        "dead": faces["dead"].astype(int).tolist(),
        "values": {s.name: rounded(faces[s.name].to_numpy(dtype=float)) for s in scores},
        "words": words,
        "said": of_face,
    }
    if "cluster" in faces:
        payload["cluster"] = faces["cluster"].fillna(-1).astype(int).tolist()
    if "named" in faces:
        known = {word: i for i, word in enumerate(words)}
        named = faces["named"].eq(True).to_numpy()  # missing is not named
        payload["name"] = [
            known[concept] if yes else -1
            for concept, yes in zip(faces["concept"], named, strict=True)
        ]
    return payload


def _words(run: Run, faces: pd.DataFrame) -> tuple[list[str], list[list[int]]]:
    """Return all words that faces can be found by, and which belong to each."""
    known: dict[str, int] = {}
    found: dict[tuple[str, int, str], dict[int, None]] = {}
    tables = [(name, "concept") for name in ("labels", "facet_labels") if run.has_table(name)]
    sources = [(run.table(name), column) for name, column in tables]
    sources += [(faces, column) for column in ("best_class", "best_concept") if column in faces]
    for table, column in sources:
        rows = table[table[column].notna()]
        columns = [rows[name].tolist() for name in ("site", "unit", "tail", column)]
        for site, unit, tail, word in zip(*columns, strict=True):
            number = known.setdefault(str(word), len(known))
            found.setdefault((site, unit, tail), {})[number] = None
    keys = zip(faces["site"], faces["unit"].tolist(), faces["tail"], strict=True)
    return list(known), [list(found.get(key, ())) for key in keys]


def _choices(run: Run) -> list[dict[str, Any]]:
    """Return groups of choices for the filter by site: kinds of units, blocks, single sites."""
    known = [parse_site(site) for site in run.sites]
    parts = list(dict.fromkeys(site.part for site in known))
    layers = sorted({site.layer for site in known if site.layer is not None})
    groups = []
    if len(parts) > 1:
        options = [(f"part:{part}", _PARTS.get(part, part)) for part in parts]
        groups.append({"title": "Kinds of units", "options": options})
    if len(layers) > 1:
        blocks = [(f"layer:{layer}", f"Block {layer}") for layer in layers]
        groups.append({"title": "Blocks", "options": blocks})
    groups.append({"title": "Sites", "options": [(f"site:{s}", s) for s in run.sites]})
    return groups


def _clusters(run: Run) -> list[tuple[int, str]]:
    if not (run.has_table("clusters") and run.has_table("cluster_summary")):
        return []
    return [
        (row["cluster"], _cluster_title(row))
        for row in run.table("cluster_summary").to_dict("records")
    ]


def _cluster_title(row: dict[Any, Any]) -> str:
    top = row["top_class"]
    said = f", {top}" if isinstance(top, str) and top else ""
    return f"Group {row['cluster']}{said} ({row['faces']:,})"


def _missing_on_cards(run: Run) -> list[Missing]:
    spec = run.manifest["model"]["spec"]
    found = []
    if not (run.path / "contributions.zarr").is_dir():
        command = f"polysem explain --run {run.path} --model {spec}"
        found.append(Missing("What in each exemplar made the unit fire", command))
    if not run.has_table("edges"):
        command = f"polysem circuits {run.path} --model {spec}"
        found.append(Missing("Units before and after each unit", command))
    if run.has_table("facets") and not run.has_table("facet_labels"):
        command = f"polysem describe-neurons {run.path} --clip MODEL --facets"
        found.append(Missing("Names of facets", command))
    if "labelled" in run.manifest["data"] and not run.manifest["data"]["labelled"]:
        found.append(Missing("Class profiles", "polysem probe with labelled images"))
    return found
