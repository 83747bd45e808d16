"""What a recipe may say about the methods that live in the model: one key each, off by default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from polysem.train.section import BelowOne, Positive, PositiveOrZero, Section

__all__ = ["Attention", "DropHead", "Dropout", "PatchDropout"]


class DropHead(Section):
    """Heads left out while training: half of them, each at rate p, or at a rate that changes.

    Scheduled, the rate falls from `p_start` to 0 over the warm-up of the learning rate, then climbs
    to `p_end` at the end of the training.
    """

    mode: Literal["half", "bernoulli", "scheduled"] = "half"
    p: BelowOne | None = None
    p_start: BelowOne | None = None
    p_end: BelowOne | None = None

    @model_validator(mode="after")
    def _rates_of_the_mode(self) -> DropHead:
        takes = {"half": (), "bernoulli": ("p",), "scheduled": ("p_start", "p_end")}[self.mode]
        rates = ("p", "p_start", "p_end")
        given = tuple(name for name in rates if getattr(self, name) is not None)
        if given != takes:
            wanted = " and ".join(takes) or "no rate"
            found = " and ".join(given) or "none"
            raise ValueError(f"mode {self.mode!r} takes {wanted}; got {found}")
        return self


class Dropout(Section):
    """Rates of timm's dropout: MLP units and what branches write, patterns, tokens, the head."""

    hidden: BelowOne = 0.0
    attention: BelowOne = 0.0
    tokens: BelowOne = 0.0
    head: BelowOne = 0.0


class PatchDropout(Section):
    """The part of the patches that stays while training: one number, or drawn between two."""

    keep: float | tuple[float, float]

    @field_validator("keep", mode="before")
    @classmethod
    def _parts(cls, keep: Any) -> Any:
        parts = keep if isinstance(keep, (list, tuple)) and len(keep) == 2 else [keep]
        numbers = all(isinstance(p, (int, float)) and not isinstance(p, bool) for p in parts)
        if not numbers or not 0 < parts[0] <= parts[-1] <= 1:
            raise ValueError("it takes one number above 0 up to 1, or two that rise")
        return parts[0] if len(parts) == 1 else tuple(parts)

    def rate(self) -> float | list[float]:
        """Return the part that goes, or the least and the most of it."""
        if isinstance(self.keep, tuple):
            return [1 - self.keep[1], 1 - self.keep[0]]
        return 1 - self.keep


class Attention(Section):
    """How tokens attend to each other; a key below belongs to one kind and has its default.

    `lr` is the peak learning rate of what the kind itself learns.
    """

    kind: Literal["softmax", "sata", "attn_scale", "manhattan", "cosine"]
    threshold: BelowOne | None = None
    strength: float | None = None
    lr: Positive | None = None
    start: Positive | None = None
    spread: PositiveOrZero | None = None
    decomposed: bool | None = None
    local: bool | None = None
    tau: Positive | None = None
    nu: Positive | None = None
    eps: Positive | None = None
    normalize_values: bool | None = None

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> Attention:
        takes = {
            "sata": ("threshold", "strength", "lr"),
            "attn_scale": ("lr",),
            "manhattan": ("start", "spread", "decomposed", "local"),
            "cosine": ("tau", "nu", "eps", "normalize_values"),
        }.get(self.kind, ())
        given = self.model_dump(exclude={"kind"}, exclude_none=True)
        wrong = sorted(given.keys() - set(takes))
        if wrong:
            raise ValueError(
                f"kind {self.kind!r} takes {', '.join(takes) or 'no other key'}; "
                f"got {', '.join(wrong)}"
            )
        return self

    def options(self) -> dict[str, Any]:
        """Return what is given for the model, beside the kind."""
        return self.model_dump(exclude={"kind", "lr"}, exclude_none=True)
