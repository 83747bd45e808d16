"""The pages of a site, in the order of its navigation."""

from __future__ import annotations

from polysem.report.site.atlas import atlas
from polysem.report.site.overview import overview
from polysem.report.site.parts import PageKind

__all__ = ["KINDS"]

KINDS = (
    PageKind("index", "Overview", overview, each=False),
    PageKind("atlas", "Neurons", atlas, scripts=("thumbs.js", "atlas.js", "card.js")),
)
