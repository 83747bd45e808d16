"""What a circuit leads to: exemplars of a unit's face, of a class or of a cluster, with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from polysem.errors import RunError, SpecError, did_you_mean
from polysem.explain.cuts import CLASS
from polysem.explain.run_exemplars import Exemplars, site_exemplars
from polysem.explain.target import Target, parse_target
from polysem.explain.tracing import class_exemplars
from polysem.models.load import LoadedModel
from polysem.store.run import Run

__all__ = ["CircuitTarget", "circuit_targets"]

#: Exemplars of a cluster, over all its members: enough for a mean.
_MOST = 512


@dataclass(frozen=True)
class CircuitTarget:
    """What a circuit leads to.

    Attributes
    ----------
    name, title : str
        For files, and for people.
    exemplars : dict of str to Exemplars
        By site, or `cuts.CLASS`.
    """

    name: str
    title: str
    exemplars: Mapping[str, Exemplars]


def circuit_targets(
    run: Run,
    loaded: LoadedModel,
    *,
    unit: str | None,
    of_class: str | int | None,
    cluster: int | None,
    facet: int | None,
    exemplars: int,
) -> list[CircuitTarget]:
    """Return what is asked for: one target, or the two faces of a unit.

    Raises
    ------
    SpecError
        If not just one thing is named, or it is not there, with near matches.
    RunError
        If the run has no exemplars of it.
    """
    if sum(given is not None for given in (unit, of_class, cluster)) != 1:
        raise SpecError("a circuit leads to one thing: name a unit, a class or a cluster")
    if facet is not None and unit is None:
        raise SpecError("a facet is one of a unit: name the unit, too")
    if unit is not None:
        return _of_unit(run, loaded, unit, facet, exemplars)
    if of_class is not None:
        return [_of_class(run, loaded, str(of_class), exemplars)]
    assert cluster is not None
    return [_of_cluster(run, cluster, exemplars)]


def _of_unit(
    run: Run, loaded: LoadedModel, text: str, facet: int | None, limit: int
) -> list[CircuitTarget]:
    if ":" not in text:
        raise SpecError(f"{text!r} is not site:unit, such as hook_pooled:0")
    target = parse_target(text, loaded.model, classes=())
    if target.site is None or target.pool is not None or target.position is not None:
        raise SpecError(
            f"{text!r} is not site:unit or site:unit:lower; circuits begin where exemplars peak"
        )
    each = site_exemplars(run, target.site, None)
    if target.unit >= each.shape[1]:
        raise SpecError(f"{target.site} has no unit {target.unit}: it has {each.shape[1]}, from 0")
    named = target.tail if text.split(":")[-1] in ("upper", "lower") else None
    if named is not None and named not in each.tails:
        raise SpecError(f"units of {target.site} fire in one direction; leave {named} out")
    firing = run.units(target.site)["top_value"].to_numpy()[each.at]
    firing = np.where(each.at[0] == 0, firing, -firing) > 0
    found = []
    for tail in each.tails if named is None else [named]:
        mine = firing & (each.at[0] == each.tails.index(tail)) & (each.at[1] == target.unit)
        name, title = f"{target.site}_{target.unit}_{tail}", f"{target.site}:{target.unit}"
        title += f":{tail}" if len(each.tails) > 1 else ""
        if facet is not None:
            mine &= np.isin(each.at[2], _ranks(run, target, tail, facet))
            name, title = f"{name}_facet_{facet}", f"{title}, facet {facet}"
        else:
            mine &= each.at[2] < limit
        if (some := _some(each, mine)).image.size:
            found.append(CircuitTarget(name, title, {target.site: some}))
    if not found:
        raise RunError(
            f"{run.path} has no exemplars of {text}: it never fired in that direction; polysem "
            f"show {run.path} draws units that did"
        )
    return found


def _ranks(run: Run, target: Target, tail: str, facet: int) -> npt.NDArray[np.int64]:
    if not run.has_table("facets"):
        raise RunError(f"{run.path} holds no facets; find them with: polysem facets {run.path}")
    table = run.table("facets")
    own = (table["site"] == target.site) & (table["unit"] == target.unit)
    mine = table[own & (table["tail"] == tail)].set_index("facet")["ranks"]
    if facet not in mine.index:
        raise SpecError(
            f"the {tail} face of {target.site}:{target.unit} has no facet {facet}: it has "
            f"{len(mine)}, from 0"
        )
    return np.asarray(mine.loc[facet])


def _of_class(run: Run, loaded: LoadedModel, text: str, limit: int) -> CircuitTarget:
    names = list(loaded.classes or run.classes or ())
    if text not in names and not text.strip().isdecimal():
        near = did_you_mean(text, names) or f"; there are {', '.join(names[:10])}"
        raise SpecError(f"there is no class {text!r}{near if names else '; give its number'}")
    index = names.index(text) if text in names else int(text)
    if names and index >= len(names):
        raise SpecError(f"there is no class {index}: the model has {len(names)}, from 0 on")
    some = class_exemplars(run, limit, index)
    name = f"{index} ({names[index]})" if names else str(index)
    if not some.image.size:
        raise RunError(
            f"{run.path} has no image that the model takes for class {name}: there is nothing to "
            "trace; probe more images"
        )
    return CircuitTarget(f"class_{index}", f"class {name}", {CLASS: some})


def _of_cluster(run: Run, cluster: int, limit: int) -> CircuitTarget:
    if not run.has_table("clusters"):
        raise RunError(f"{run.path} holds no clusters; find them with: polysem clusters {run.path}")
    table = run.table("clusters")
    members = table[table["cluster"] == cluster]
    if cluster < 0 or members.empty:
        n = int(table["cluster"].max()) + 1
        raise SpecError(f"{run.path} has no cluster {cluster}: it has {n}, counted from 0")
    members = members.nlargest(_MOST, "firmness", keep="first")
    limit = max(1, min(limit, _MOST // len(members)))
    found = {}
    for site in run.sites:
        mine = members[members["site"] == site]
        if mine.empty:
            continue
        each = site_exemplars(run, site, limit)
        inside = np.zeros(each.shape[:2], bool)
        inside[[each.tails.index(tail) for tail in mine["tail"]], mine["unit"]] = True
        if (some := _some(each, inside[each.at[0], each.at[1]])).image.size:
            found[site] = some
    if not found:
        raise RunError(f"{run.path} has no exemplars of cluster {cluster}")
    return CircuitTarget(f"cluster_{cluster}", f"cluster {cluster}", found)


def _some(each: Exemplars, mine: npt.NDArray[np.bool_]) -> Exemplars:
    """Return those exemplars of a site for which `mine` is true."""
    at = tuple(axis[mine] for axis in each.at)
    return replace(each, image=each.image[mine], at=at, position=each.position[mine])
