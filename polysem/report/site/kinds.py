"""The pages of a site, in the order of its navigation."""

from __future__ import annotations

from polysem.report.site.atlas import atlas
from polysem.report.site.comparison import comparison
from polysem.report.site.evolution import evolution
from polysem.report.site.explanations import explanations
from polysem.report.site.feature_map import feature_map
from polysem.report.site.heads import heads_page
from polysem.report.site.methods import methods
from polysem.report.site.overview import overview
from polysem.report.site.parts import PageKind

__all__ = ["KINDS"]

KINDS = (
    PageKind("index", "Overview", overview, each=False),
    PageKind("atlas", "Neurons", atlas, scripts=("thumbs.js", "card.js", "atlas.js")),
    PageKind("heads", "Heads", heads_page, scripts=("charts.js", "thumbs.js", "heads.js")),
    PageKind("map", "Map", feature_map, scripts=("charts.js", "thumbs.js", "card.js", "map.js")),
    PageKind("explanations", "Explanations", explanations, each=False),
    PageKind("evolution", "Evolution", evolution, each=False, scripts=("charts.js",)),
    PageKind("comparison", "Comparison", comparison, each=False, scripts=("charts.js",)),
    PageKind("methods", "Methods", methods, each=False),
)
