"""The formulas behind what the site shows, each with its source and the table that it needs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FORMULAS", "Formula"]


@dataclass(frozen=True)
class Formula:
    """How one number comes about.

    Attributes
    ----------
    name, formula, meaning : str
        The formula in plain characters.
    source : str
        Who it is from; polysem's own where this is empty.
    link : str
        Where to read it.
    needs : str
        The table or array of a run that holds it; empty for what every run has.
    topic : str
        The heading that it stands under.
    """

    name: str
    formula: str
    meaning: str
    source: str = ""
    link: str = ""
    needs: str = ""
    topic: str = ""


def _arxiv(number: str) -> str:
    return f"https://arxiv.org/abs/{number}"


_PROBE, _SCORES, _GROUPS = "What the probe records", "How many things a unit answers to", "Groups"
_NAMES, _WHY, _HEADS = "Names", "Why a unit fired", "Heads"
_INTERVALS = "Intervals"

FORMULAS = (
    Formula(
        "Exemplars", "the images with the largest (upper) or smallest (lower) pooled activation",
        "A unit's tokens become one number per image: maximum, mean or minimum over patches.",
        topic=_PROBE,
    ),
    Formula(
        "Excess kurtosis", "E[(a − μ)⁴] / σ⁴ − 3",
        "0 for a normal distribution; higher where few images excite the unit far more.",
        topic=_PROBE,
    ),
    Formula(
        "Hoyer sparsity", "(√n − Σ|a| / √Σa²) / (√n − 1)",
        "0 if all n images excite the unit alike, 1 if a single one does.",
        "Hoyer 2004, JMLR 5:1457", "https://www.jmlr.org/papers/v5/hoyer04a.html", topic=_PROBE,
    ),
    Formula(
        "Activating region", "a(y, x) > μ + ½ (max a − μ)",
        "Outlined on exemplars: more than halfway from the unit's mean to its peak in the image.",
        topic=_PROBE,
    ),
    Formula(
        "Excess rank", "(Σλ)² / Σλ² over eigenvalues λ of E[z w wᵀ] beyond a permutation null",
        "Effective number of things in the embeddings w that excite the unit, whose standardised "
        "activation is z; of each λ the null's edge is taken off, √(λ² − edge²). Lower is more "
        "monosemantic.", needs="polysemanticity", topic=_SCORES,
    ),
    Formula(
        "Monosemanticity", "Σᵢ<ⱼ ãᵢ ãⱼ ⟨eᵢ, eⱼ⟩ / Σᵢ<ⱼ ãᵢ ãⱼ",
        "Mean cosine of the embeddings e of two images, weighted by activations ã in [0, 1]. Above "
        "chance: (ms − c) / (1 − c), c the mean cosine of all pairs.",
        "Pach et al. 2025", _arxiv("2504.02821"), "polysemanticity", _SCORES,
    ),
    Formula(
        "Class selectivity", "(μ_max − μ_rest) / (μ_max + μ_rest)",
        "Of class means above the unit's smallest; 1: one class alone.",
        "Morcos et al. 2018", _arxiv("1803.06959"), "polysemanticity", _SCORES,
    ),
    Formula(
        "Effective classes", "exp(−Σ p log p), p the shares of class means",
        "1 to the number of classes; lower is more selective.", needs="polysemanticity",
        topic=_SCORES,
    ),
    Formula(
        "AUROC of a class or concept", "P(a of an image that shows it > a of one that does not)",
        "0.5 is chance; the best of many is above it by chance too.",
        "Bykov et al. 2023 (INVERT)", _arxiv("2311.13594"), "polysemanticity", _SCORES,
    ),
    Formula(
        "Treves–Rolls sparsity", "1 − (mean a)² / mean a²", "Higher: fewer images.",
        "Rolls and Tovee 1995", "https://doi.org/10.1152/jn.1995.73.2.713", "polysemanticity",
        _SCORES,
    ),
    Formula(
        "Gini index", "Σᵢ (2i − n − 1) aᵢ / (n Σa), a in ascending order",
        "0 if all images excite the unit alike, towards 1 if one does.",
        "Hurley and Rickard 2009", _arxiv("0811.4706"), "polysemanticity", _SCORES,
    ),
    Formula(
        "Clarity and redundancy", "mean cosine between exemplars; largest cosine of mean exemplars",
        "How alike a unit's exemplars are, and how alike those of the nearest other unit.",
        "Dreyer et al. 2025 (SemanticLens)", _arxiv("2501.05398"), "polysemanticity", _SCORES,
    ),
    Formula(
        "Facets", "k-means of exemplars on their principal axes, against random frames",
        "More than one where the tightest division is tighter than that of normal blobs of the "
        "same spread by over 4 standard deviations.",
        "silhouette: Rousseeuw 1987", "https://doi.org/10.1016/0377-0427(87)90125-7",
        "unit_facets", _GROUPS,
    ),
    Formula(
        "Independent concepts", "greedy set cover, each by a permutation test at 0.01",
        "Annotated concepts that excite a unit among images that show none of those before.",
        needs="concepts", topic=_GROUPS,
    ),
    Formula(
        "Groups of units", "HDBSCAN; stability by the adjusted Rand index of bootstrap samples",
        "p: how often a silhouette is as high where each dimension is permuted among the units.",
        "Campello et al. 2013", "https://doi.org/10.1007/978-3-642-37456-2_14", "clusters",
        _GROUPS,
    ),
    Formula(
        "Map", "UMAP with cosine distance",
        "Neighbours lie close; distances between far groups mean little.",
        "McInnes et al. 2018", _arxiv("1802.03426"), "clusters", _GROUPS,
    ),
    Formula(
        "Name of a unit", "Σⱼ log(1 + pⱼ (P_jc − 1)) − what images drawn at random get",
        "Soft pointwise mutual information of concept c and exemplars j, each trusted by pⱼ, with "
        "P the softmax of a vision-language model over the vocabulary: soft-wpmi, the default.",
        "Oikarinen and Weng 2023 (CLIP-Dissect)", _arxiv("2204.10965"), "labels", _NAMES,
    ),
    Formula(
        "Fitting names", "q-value by Benjamini and Hochberg over all units",
        "p: how often images drawn at random find a name at least as good.",
        "Benjamini and Hochberg 1995", "https://doi.org/10.1111/j.2517-6161.1995.tb02031.x",
        "labels", _NAMES,
    ),
    Formula(
        "Contribution", "Σ_channels x ⊙ ∇ₓ a(x)",
        "What each place adds to the activation. Of B-cos networks this is Σ x ⊙ W(x), exact as "
        "the network is W(x) x; of others input times gradient.",
        "Böhle et al. 2022, 2024", _arxiv("2306.10898"), "contributions.zarr", _WHY,
    ),
    Formula(
        "Units before and after", "a_source · ∂a_target / ∂a_source, mean over exemplars",
        "Direct effects between traced sites, as shares of the target's firing.",
        "Dreyer et al. 2024 (PURE)", _arxiv("2404.06453"), "edges", _WHY,
    ),
    Formula(
        "Importance", "f(head put to zero, to its mean, or that of another image) − f(intact)",
        "f is the loss, or the margin of the right class with its sign turned.", needs="heads",
        topic=_HEADS,
    ),
    Formula(
        "Interaction", "Iᵢⱼ = f(1 − eᵢ − eⱼ) − f(1 − eᵢ) − f(1 − eⱼ) + f(1)",
        "Above 0 two heads cover for each other; below 0 they fight, or one repairs the other.",
        "Grabisch and Roubens 1999", "https://doi.org/10.1007/s001820050125", "head_pairs", _HEADS,
    ),
    Formula(
        "Co-adaptation", "Σ|Iᵢⱼ| / Σ|importance|, over that of random parts of the heads' outputs",
        "0 if heads do not depend on each other; what DropHead is meant to lower.",
        "DropHead: Zhou et al. 2020", _arxiv("2004.13342"), "head_network", _HEADS,
    ),
    Formula(
        "Suppression", "min(|cᵢ|, |cⱼ|) / Σ|c| where cᵢ and cⱼ have opposite signs",
        "c: direct shares of the correct class's logit, final norm held fixed.",
        needs="head_pairs", topic=_HEADS,
    ),
    Formula(
        "CKA", "‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)",
        "How alike the outputs X and Y of two heads are over all tokens, centred.",
        "Kornblith et al. 2019", _arxiv("1905.00414"), "head_pairs", _HEADS,
    ),
    Formula(
        "Shares", "(p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n), z = 1.96",
        "Of accuracy and of shares of units.",
        "Wilson 1927", "https://doi.org/10.1080/01621459.1927.10502953", topic=_INTERVALS,
    ),
    Formula(
        "Everything else", "2.5 % and 97.5 % quantiles of bootstrap samples",
        "Over images for scores and heads, over units for medians of sites. They say nothing of "
        "other seeds of the training.",
        "Efron 1979", "https://doi.org/10.1214/aos/1176344552", topic=_INTERVALS,
    ),
)  # fmt: skip
