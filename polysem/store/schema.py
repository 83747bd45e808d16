"""What a run folder holds: names, axes and meaning of everything in it, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

__all__ = [
    "EMBEDDINGS", "FORMAT", "GATES", "HEADS", "IMAGES", "LABELS", "OLDEST_FORMAT", "QUANTILES",
    "TABLES", "UNITS", "Variable", "dataset", "ranking_pool",
]  # fmt: skip

#: Version of the run folder's layout; raised when older readers would misread it.
FORMAT = 1

#: The oldest that is still read; runs of an older one name the polysem that reads them.
OLDEST_FORMAT = 1

#: Quantiles given for each unit; the sample of images in the run gives any other.
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)

#: Columns of ``images.parquet``, and numpy's letters of the types that they are read as: where no
#: value is known a column may be of any.
IMAGES: Mapping[str, str] = {
    "image": "iu", "key": "OUT", "label": "iufO", "prediction": "iufO", "loss": "fO",
    "correct": "bOf",
}  # fmt: skip

#: The same of the tables that a probe writes, by name.
TABLES: Mapping[str, Mapping[str, str]] = {
    "units": {"site": "OUT", "unit": "iu", "dead": "b", "kurtosis": "f", "sparsity": "f"},
}


@dataclass(frozen=True)
class Variable:
    """One array of the run.

    Attributes
    ----------
    dims : tuple of str
        Words for its axes.
    meaning : str
        What a value is, with unit and source; kept with the array as ``long_name``.
    """

    dims: tuple[str, ...]
    meaning: str


_PER_UNIT = ("pool", "unit")
_TOP = ("tail", "unit", "rank")

#: Words that the axes which have any are labelled with.
LABELS: Mapping[str, tuple[str, ...]] = {
    "pool": ("max", "mean", "min", "cls", "value"),
    "tail": ("upper", "lower"),
}

#: Arrays of ``units.zarr/<site>``. Activations are in the network's own units. `pool` says how a
#: unit's tokens became one number per image: max, mean or min over patches, cls (the class
#: token's own value), or value where there are no tokens.
UNITS: Mapping[str, Variable] = {
    "count": Variable((), "images seen"),
    "mean": Variable(_PER_UNIT, "mean over images of the pooled activation"),
    "variance": Variable(_PER_UNIT, "population variance over images"),
    "skewness": Variable(_PER_UNIT, "skewness over images; NaN if constant"),
    "kurtosis": Variable(_PER_UNIT, "excess kurtosis over images, 0 if normal; NaN if constant"),
    "min": Variable(_PER_UNIT, "smallest value over images"),
    "max": Variable(_PER_UNIT, "largest value over images"),
    "sparsity": Variable(_PER_UNIT, "Hoyer sparsity over images, 0 even to 1 sparse (Hoyer 2004)"),
    "positive_share": Variable(_PER_UNIT, "share of images with a value above 0"),
    "quantile": Variable(("pool", "q", "unit"), "quantiles over images, from the sample"),
    "dead": Variable(("unit",), "the unit gave the same value on all images, in every pool"),
    "class_sum": Variable(("pool", "class", "unit"), "sum over the images of a class"),
    "class_count": Variable(("class",), "images of each class"),
    "sample_image": Variable(("sample",), "image index of the sampled images, ascending"),
    "sample_value": Variable(("pool", "sample", "unit"), "pooled activation of sampled images"),
    "top_value": Variable(_TOP, "activation of the exemplars, most extreme first; NaN if none"),
    "top_image": Variable(_TOP, "image index of the exemplars; NaN if none"),
    "top_y": Variable(_TOP, "row of the map where the exemplar peaks; NaN if none"),
    "top_x": Variable(_TOP, "column of the map where the exemplar peaks; NaN if none"),
    "top_map": Variable((*_TOP, "y", "x"), "activation over the patch grid of each exemplar"),
    "n_exemplars": Variable(("tail", "unit"), "exemplars found, at most the number of ranks"),
    "pooled": Variable(("image", "pool", "unit"), "pooled activation of every image"),
    "monosemanticity": Variable(
        ("tail", "unit"),
        "monosemanticity score over all images by the embeddings of the probe, -1 to 1, higher "
        "is more monosemantic; NaN if constant (Pach et al. 2504.02821)",
    ),
    "centroid": Variable(
        ("tail", "unit", "dim"),
        "mean embedding of the images, weighted by activation above the unit's smallest",
    ),
    "replicate_monosemanticity": Variable(
        ("replicate", "tail", "unit"), "the score under each replicate of the bootstrap"
    ),
    "replicate_mean": Variable(
        ("replicate", "tail", "unit"),
        "mean activation under each replicate; of a lower tail, of the negative activation",
    ),
    "replicate_class_mean": Variable(
        ("replicate", "class", "tail", "unit"),
        "mean activation over each class under each replicate; lower tails negative likewise",
    ),
    "weight_cosine": Variable(
        ("unit",),
        "mean absolute cosine between the unit's incoming weights and other units', 0 to 1; "
        "high where units share directions",
    ),
}

#: The array of ``embeddings.zarr``; ``attrs`` name its encoder and fingerprint.
EMBEDDINGS: Mapping[str, Variable] = {
    "embedding": Variable(("image", "dim"), "embedding of each image, of length 1"),
}


def ranking_pool(pools: Sequence[str], tail: str) -> str:
    """Return the pool by which the exemplars of a tail are ranked.

    >>> ranking_pool(["max", "mean", "min"], "lower"), ranking_pool(["value"], "lower")
    ('min', 'value')
    """
    if "value" in pools:
        return "value"
    return "max" if tail == "upper" else "min"


_PER_HEAD = ("image", "layer", "head")

#: Arrays of ``heads.zarr``.
HEADS: Mapping[str, Variable] = {
    "output_norm": Variable(_PER_HEAD, "mean over patches of the length of the head's output z"),
    "pattern_entropy": Variable(
        _PER_HEAD, "mean over queries of the attention entropy, nats, 0 to ln(tokens)"
    ),
    "pattern_distance": Variable(
        _PER_HEAD,
        "mean over patch queries of the expected distance to attended patches, patch widths; "
        "attention to class and register tokens left out (Dosovitskiy et al. 2010.11929)",
    ),
}

_PER_PAIR = (*_PER_HEAD, "layer_2", "head_2")
_ALONE = "cost with the head's output replaced by "
_SHARE = "direct share of the correct-class logit "
_DROP = ("image", "draw", "share")

#: Arrays of ``gates.zarr``: what `polysem heads` measures of every head, in images studied. The
#: cost is what the attribute ``target`` says: the loss, or the margin with its sign turned.
GATES: Mapping[str, Variable] = {
    "cost": Variable(("image",), "cost of the network as it is"),
    "loss": Variable(("image",), "cross-entropy of the network as it is, nats"),
    "correct": Variable(("image",), "1 where the prediction is the class held to, else 0"),
    "held_to": Variable(("image",), "class that the image is held to: its label, or a prediction"),
    "slope": Variable(_PER_HEAD, "derivative of the cost by the head's gate, at 1"),
    "cost_zero": Variable(_PER_HEAD, _ALONE + "zero"),
    "cost_mean": Variable(_PER_HEAD, _ALONE + "its mean over images, token by token"),
    "cost_resample": Variable(_PER_HEAD, _ALONE + "that of another image drawn at random"),
    "interaction": Variable(
        _PER_PAIR,
        "estimated f(1-ei-ej) - f(1-ei) - f(1-ej) + f(1), f the cost and i, j the heads; above 0 "
        "they cover for each other, below 0 they fight or one repairs what the other does; by "
        "gradients: (layer, head) ablated, (layer_2, head_2) to first order",
    ),
    "exact": Variable(("image", "pair"), "the same, both heads truly ablated"),
    "shapley": Variable(
        ("image", "pair"), "its mean over random sets of other heads ablated (Grabisch 1999)"
    ),
    "pair_first": Variable(("pair",), "number of the earlier head, counted in network order"),
    "pair_second": Variable(("pair",), "number of the later head"),
    "chance_cost": Variable(_PER_HEAD, "cost_zero of random parts of z instead of heads"),
    "chance_interaction": Variable(_PER_PAIR, "interaction of random parts of z"),
    "logit": Variable(("image",), "correct-class logit"),
    "logit_share": Variable(_PER_HEAD, _SHARE + "of the head's write, final norm held fixed"),
    "mlp_share": Variable(("image", "layer"), _SHARE + "of the block's MLP"),
    "embedding_share": Variable(("image",), _SHARE + "of the patches"),
    "remainder": Variable(("image",), _SHARE + "of nobody: biases"),
    "opposition": Variable(
        _PER_PAIR, "mean over tokens of -cos between the writes of two heads where positive, 0 to 1"
    ),
    "divergence": Variable(
        _PER_PAIR,
        "Jensen-Shannon divergence of attention patterns, mean over queries, bits, 0 to 1",
    ),
    "cka": Variable(
        _PER_PAIR[1:],
        "linear CKA of the outputs of two heads over all tokens, 0 to 1 (Kornblith 1905.00414)",
    ),
    "pattern_entropy": HEADS["pattern_entropy"],
    "pattern_distance": HEADS["pattern_distance"],
    "class_share": Variable(_PER_HEAD, "attention of patches to the class token; NaN without"),
    "self_share": Variable(_PER_HEAD, "attention of patches to themselves"),
    "neighbour_share": Variable(_PER_HEAD, "attention of patches to the up to 8 patches around"),
    "previous_share": Variable(_PER_HEAD, "attention of patches to the one before, row by row"),
    "duplicate_share": Variable(
        _PER_HEAD,
        "attention to other patches of the same pixels, where there are any; NaN elsewhere",
    ),
    "fixed_share": Variable(
        _PER_HEAD[1:],
        "mean entropy of the pattern over that of the mean pattern: 1 if it is the same for all "
        "images, hence positional",
    ),
    "attention_map": Variable(
        (*_PER_HEAD, "y", "x"),
        "attention to each patch, of the class token or else the mean of all patches",
    ),
    "drop_loss": Variable(_DROP, "loss with a share of the heads dropped at random"),
    "drop_cost": Variable(_DROP, "cost with a share of the heads dropped at random"),
    "drop_correct": Variable(_DROP, "correct with a share of the heads dropped at random"),
}


def dataset(
    schema: Mapping[str, Variable], arrays: Mapping[str, Any], coords: Mapping[str, Any]
) -> xr.Dataset:
    """Return arrays as an xarray Dataset with the axes and meanings that the schema gives them."""
    data = {
        name: xr.Variable(schema[name].dims, np.asarray(value), {"long_name": schema[name].meaning})
        for name, value in arrays.items()
    }
    return xr.Dataset(data, coords={name: _coordinate(value) for name, value in coords.items()})


def _coordinate(values: Any) -> Any:
    """Return words as objects: zarr stores these as its type string, fixed widths as its own."""
    given = np.asarray(values)
    return given.astype(object) if given.dtype.kind == "U" else given
