"""How far each block has made the tokens of an image alike, and how widely it attends.

What SATA (2210.12333), AttnScale and FeatScale (2203.05962) are meant to prevent: attention
averages, so that tokens grow alike with depth. Measured image by image in the probe's pass and
kept as means, with their standard errors over images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from polysem.errors import SpecError
from polysem.models.hooked import HookedVisionModel
from polysem.models.scores import attention_bias, attention_scores
from polysem.probe.accumulators import Moments, State
from polysem.probe.patterns import images_at_a_time

__all__ = ["MEANINGS", "SmoothingRecorder", "attention_smoothing", "token_smoothing"]

_TOKEN = ("token_cosine", "high_frequency_share", "effective_rank")
_ATTENTION = ("attention_entropy", "trivial_share")

#: Attention is trivial up to this share of the largest in its row (SATA's threshold for ViTs).
_TRIVIAL = 0.1

#: What the columns of ``tables/smoothing.parquet`` hold.
MEANINGS = {
    "layer": "block, counted from 0; tokens are those after it (blocks.{layer}.hook_resid_post)",
    "images": "images that the means are over",
    "token_cosine": "mean cosine between two patch tokens of an image, -1 to 1; 1: all alike",
    "high_frequency_share": "‖X - mean over patches‖ / ‖X‖, 0 to 1; 0: all tokens alike "
    "(2203.05962)",
    "effective_rank": "exp of the entropy of the singular values of an image's patch tokens, from "
    "1 to the number of patches (Roy and Vetterli 2007)",
    "attention_entropy": "mean over heads and queries of the attention's entropy, nats, 0 to "
    "ln(tokens); NaN without attention",
    "trivial_share": f"mean share of a query's attention that goes to keys with at most "
    f"{_TRIVIAL} of its largest, 0 to 1 (2210.12333); NaN without attention",
}
MEANINGS |= {
    f"{name}_se": f"standard error of {name} over images" for name in (*_TOKEN, *_ATTENTION)
}


def token_smoothing(tokens: Tensor) -> Tensor:
    """Return how alike the tokens of each image are.

    Parameters
    ----------
    tokens : Tensor
        Patch tokens [image, token, d_model].

    Returns
    -------
    Tensor
        float64 [image, measure]: mean cosine between two tokens (``(‖Σ t̂‖² - n) / (n² - n)``; NaN
        for a single token), high-frequency share and effective rank.
    """
    x = tokens.double()
    n = x.shape[1]
    directions = torch.nn.functional.normalize(x, dim=2)
    norms = (directions * directions).sum((1, 2))
    cosine = ((directions.sum(1) ** 2).sum(1) - norms) / (n * n - n)
    energy = (x * x).sum((1, 2))
    high = ((x - x.mean(1, keepdim=True)) ** 2).sum((1, 2))
    gram = x @ x.transpose(1, 2) if n <= x.shape[2] else x.transpose(1, 2) @ x
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum(1, keepdim=True)
    rank = torch.special.entr(share).sum(1).exp()
    return torch.stack([cosine, (high / energy).sqrt(), rank], dim=1)


def attention_smoothing(scores: Tensor) -> Tensor:
    """Return entropy and trivial share of attention logits [image, head, query, key].

    Returns
    -------
    Tensor
        float64 [image, measure], means over heads and queries.
    """
    pattern = scores.float().softmax(-1)
    entropy = torch.special.entr(pattern).sum(-1).mean((1, 2))
    trivial = pattern <= _TRIVIAL * pattern.amax(-1, keepdim=True)
    share = (pattern * trivial).sum(-1).mean((1, 2))
    return torch.stack([entropy, share], dim=1).double()


class SmoothingRecorder:
    """Hooks that measure the tokens and patterns of every block of one model.

    Parameters
    ----------
    hooked : HookedVisionModel
        A vision transformer.

    Raises
    ------
    SpecError
        If the model has no blocks of tokens.
    """

    def __init__(self, hooked: HookedVisionModel) -> None:
        self.hooked = hooked
        names = [n for n in hooked.hook_dict if n.endswith(".hook_resid_post")]
        if not names:
            raise SpecError("this model has no blocks of tokens; leave out --smoothing")
        self.blocks = [n.removesuffix(".hook_resid_post") for n in names]
        self.moments: dict[str, Moments] = {}
        self._queries: Tensor | None = None
        self._attention: Tensor | None = None

    def hooks(self) -> list[tuple[str, Callable[..., None]]]:
        """Return the hooks to set on the model."""
        found: list[tuple[str, Callable[..., None]]] = []
        for block in self.blocks:
            if f"{block}.attn.hook_q" in self.hooked.hook_dict:
                found += [
                    (f"{block}.attn.hook_q", self._keep_queries),
                    (f"{block}.attn.hook_k", partial(self._attend, block)),
                ]
            found.append((f"{block}.hook_resid_post", partial(self._record, block)))
        return found

    def state_dict(self) -> dict[str, State]:
        """Return the state of every block's moments by the block's name."""
        return {block: moments.state_dict() for block, moments in self.moments.items()}

    def load_state_dict(self, state: Mapping[str, State], device: torch.device) -> None:
        """Take over what `state_dict` gave."""
        self.moments = {}
        for block, kept in state.items():
            self.moments[block] = Moments(*kept["mean"].shape, device=device)
            self.moments[block].load_state_dict({k: v.to(device) for k, v in kept.items()})

    def merge(self, state: Mapping[str, State], device: torch.device) -> None:
        """Add what another recorder of the same model has seen, by its state."""
        other = SmoothingRecorder(self.hooked)
        other.load_state_dict(state, device)
        for block, moments in other.moments.items():
            if block in self.moments:
                self.moments[block].merge(moments)
            else:
                self.moments[block] = moments

    def table(self) -> pd.DataFrame:
        """Return one row a block, its columns as in `MEANINGS`."""
        rows = []
        for layer, block in enumerate(self.blocks):
            moments = self.moments[block]
            row: dict[str, float] = {"layer": layer, "images": int(moments.count)}
            error = (moments.variance()[0] / (moments.count - 1)).sqrt()
            for i, name in enumerate((*_TOKEN, *_ATTENTION)):
                row[name] = float(moments.mean[0, i])
                row[f"{name}_se"] = float(error[i])
            rows.append(row)
        table = pd.DataFrame(rows)[list(MEANINGS)]
        table.attrs = {"columns": MEANINGS}
        return table

    def _keep_queries(self, queries: Tensor, *, hook: Any) -> None:
        self._queries = queries

    def _attend(self, block: str, keys: Tensor, *, hook: Any) -> None:
        assert self._queries is not None
        q, k = self._queries.transpose(1, 2), keys.transpose(1, 2)
        self._queries = None
        attn = self.hooked.model.get_submodule(f"{block}.attn")
        bias = attention_bias(attn, q.shape[2])
        size = images_at_a_time(q.shape[1], q.shape[2])
        self._attention = torch.cat(
            [
                attention_smoothing(attention_scores(attn, some_q, some_k, bias))
                for some_q, some_k in zip(q.split(size), k.split(size), strict=True)
            ]
        )

    def _record(self, block: str, tokens: Tensor, *, hook: Any) -> None:
        with torch.autocast(tokens.device.type, enabled=False):
            measured = token_smoothing(tokens[:, self.hooked.n_prefix_tokens :])
        attention = self._attention
        self._attention = None
        if attention is None:
            attention = torch.full_like(measured[:, :2], torch.nan)
        values = torch.cat([measured, attention], dim=1)[None]
        if block not in self.moments:
            self.moments[block] = Moments(1, values.shape[2], device=values.device)
        self.moments[block].update(values)
