"""The probe at work: hooks on one model that fill the statistics of one run, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import SpecError
from polysem.models.encoder import Encoder
from polysem.models.hooked import HookedVisionModel
from polysem.models.load import LoadedModel
from polysem.models.scores import attention_bias, attention_scores, pattern_logits
from polysem.probe import describe
from polysem.probe.accumulators import State, image_hash
from polysem.probe.batches import Decoded
from polysem.probe.bootstrap import poisson_weights
from polysem.probe.embedder import Embedder, KeptEmbeddings, require_directions
from polysem.probe.patterns import images_at_a_time, patch_distances, pattern_statistics
from polysem.probe.per_image import ImageRows, Stream
from polysem.probe.pooling import square_grid
from polysem.probe.site_recorder import Batch, SiteRecorder
from polysem.probe.smoothing import SmoothingRecorder
from polysem.sites import parse_site
from polysem.store.journal import Journal, Saved

__all__ = ["Precision", "Recorder"]

Precision: TypeAlias = Literal["fp32", "bf16"]

#: Batches between two looks at whether activations are finite, and between two writes.
_CHECK_EVERY = 16


class Recorder:
    """Hooks on one model that fill the statistics of one run.

    Parameters
    ----------
    loaded : LoadedModel
        The model and how its input is made.
    source : ImageData
        Where images come from: labels and keys are read here, pixels are not.
    sites, top_k, pooled, patterns, sample, device, precision, smoothing
        As in `probe`.
    embed : Encoder, KeptEmbeddings or "model", optional
        What embeds the images.
    bootstrap : int, default 0
        Replicates of the bootstrap over images.

    Attributes
    ----------
    journal : Journal
        Where all is kept until the run is written; to be set before `recording`.
    """

    journal: Journal

    def __init__(
        self,
        loaded: LoadedModel,
        source: ImageData,
        *,
        sites: str | Iterable[str] | None,
        top_k: int,
        pooled: bool,
        patterns: bool,
        sample: int,
        device: torch.device,
        precision: Precision,
        embed: Encoder | KeptEmbeddings | Literal["model"] | None = None,
        bootstrap: int = 0,
        smoothing: bool = False,
    ) -> None:
        self.loaded, self.source = loaded, source
        self.device, self.precision = device, precision
        self.options = {
            "top_k": top_k, "pooled": pooled, "patterns": patterns, "sample": sample,
            "precision": precision, "bootstrap": bootstrap, "smoothing": smoothing,
        }  # fmt: skip
        self.hooked = HookedVisionModel(loaded.model.to(device))
        names = describe.choose_sites(list(self.hooked.hook_dict), sites)
        patch_grid = getattr(getattr(loaded.model, "patch_embed", None), "grid_size", None)
        self.sites = {
            name: SiteRecorder(
                parse_site(name),
                signed=self.hooked.taps[name].signed,
                n_prefix_tokens=self.hooked.n_prefix_tokens,
                has_class_token=self.hooked.has_class_token,
                n_classes=_n_classes(source),
                top_k=top_k,
                sample=min(sample, len(source)),
                grid=None if patch_grid is None else tuple(patch_grid),
                n_replicates=bootstrap,
            )
            for name in names
        }
        self.head_sites = [n for n in names if parse_site(n).part == "attn.hook_z"]
        self.pattern_sites = _pattern_sites(self.hooked, names) if patterns else []
        self.embedder = None
        if embed is not None:
            self.embedder = Embedder(None if embed == "model" else embed, loaded, self.hooked)
        self.smoothing = SmoothingRecorder(self.hooked) if smoothing else None
        self._embedded: list[tuple[list[str], Tensor]] = []
        self._pooled = Stream(names if pooled else self.head_sites)
        self._patterns = Stream(self.pattern_sites)
        self._rows: ImageRows | None = None
        self._batch: Batch | None = None
        self._distances: Tensor | None = None
        self._queries: Tensor | None = None
        self.skipped: list[dict[str, str]] = []
        self.notes: list[str] = []
        self.n_images = self.n_batches = self._unflushed = 0

    def config(self, batch_size: int) -> dict[str, Any]:
        """Return all that the statistics depend on beside the images' content, by name."""
        return {
            "model": self.loaded.sha256,
            "transform": self.loaded.transform.to_dict(),
            "n_images": len(self.source),
            "sites": list(self.sites),
            "embed": None if self.embedder is None else self.embedder.attrs,
            "batch_size": batch_size,
            "device": self.device.type,
            **self.options,
            "versions": {k: v for k, v in describe.describe_versions().items() if k != "python"},
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Set the hooks, in evaluation mode and without gradients; undo it all at the end."""
        training = [m for m in self.loaded.model.modules() if m.training]
        hooks: list[tuple[str, Callable[..., None]]] = [
            *((name, partial(self._record, name)) for name in self.sites),
            *((f"{name}.hook_q", self._keep_queries) for name in self.pattern_sites),
            *(
                (f"{name}.hook_k", partial(self._record_pattern, name))
                for name in self.pattern_sites
            ),
            *(self.smoothing.hooks() if self.smoothing else ()),
            *(self.embedder.hooks() if self.embedder else ()),
        ]
        with ExitStack() as stack:
            stack.callback(_set_training, training)
            stack.enter_context(torch.inference_mode())
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            stack.enter_context(self.hooked.hooks(fwd_hooks=hooks))
            self.loaded.model.eval()
            yield

    def update(self, decoded: Decoded) -> None:
        """Run one batch of decoded images through the model and record it."""
        self.n_batches += 1
        self.skipped += [{"key": e.key, "reason": e.reason} for e in decoded.skipped]
        if decoded.pixels is None:
            return
        indices = torch.tensor(decoded.indices)
        keys = [self.source.keys[i] for i in decoded.indices]
        labels = None
        if self.source.labels is not None:
            labels = torch.from_numpy(self.source.labels[decoded.indices])
        hashes = torch.from_numpy(image_hash(keys))
        n_replicates = int(self.options["bootstrap"])
        weights = poisson_weights(hashes, n_replicates) if n_replicates else None
        self._batch = Batch(
            indices.to(self.device, non_blocking=True),
            indices,
            hashes,
            None if labels is None else labels.to(self.device, non_blocking=True),
            None if weights is None else weights.to(self.device, non_blocking=True),
        )
        pixels = decoded.pixels.to(self.device, non_blocking=True)
        logits = self.hooked(self.loaded.transform.normalize(pixels))
        if self.embedder is not None:
            embeddings = self.embedder.embed(decoded, pixels)
            with torch.autocast(self.device.type, enabled=False):
                for recorder in self.sites.values():
                    recorder.embed(embeddings, self._batch)
            self._embedded.append((keys, embeddings))
        for name in self._pooled.sites:
            values = self.sites[name].latest
            if values is not None:
                self._pooled.add(name, values.transpose(0, 1))
        self._image_rows(logits.shape[1]).add(logits, decoded.indices, keys, labels)
        self.n_images += len(keys)
        self._unflushed += 1
        if self._unflushed == _CHECK_EVERY:
            self.flush()

    def commit(self, *, seconds: float, done: bool = False) -> None:
        """Make all that has been recorded so far outlast this process.

        Parameters
        ----------
        seconds : float
            Time spent so far, earlier sessions included.
        done : bool, default False
            Whether there is nothing more to record.
        """
        self.flush()
        if not (self.n_batches or done):
            return
        state: dict[str, State] = {
            f"sites/{name}/{part}": kept
            for name, recorder in self.sites.items()
            for part, kept in recorder.state_dict().items()
        }
        if self.smoothing is not None:
            kept = self.smoothing.state_dict()
            state |= {f"smoothing/{block}": moments for block, moments in kept.items()}
        arrays = {
            f"{part}/{key}": value.cpu().numpy()
            for part, values in state.items()
            for key, value in values.items()
        }
        facts = {
            "n_images": self.n_images,
            "n_batches": self.n_batches,
            "grids": {name: recorder.grid for name, recorder in self.sites.items()},
            "skipped": self.skipped,
            "notes": self.notes,
            "seconds": seconds,
        }
        self.journal.commit(arrays, facts, done=done)

    def restore(self, saved: Saved) -> None:
        """Go on from what a recorder of the same probe has committed."""
        for name, recorder in self.sites.items():
            recorder.load_state_dict(*_site_state(saved, name), device=self.device)
        if self.smoothing is not None:
            self.smoothing.load_state_dict(_states(saved, "smoothing/"), self.device)
        facts = saved.facts
        self.n_images, self.n_batches = facts["n_images"], facts["n_batches"]
        self.skipped, self.notes = list(facts["skipped"]), list(facts["notes"])

    @torch.inference_mode()
    def merge(self, saved: Saved) -> None:
        """Add what the recorder of another process has committed of its share."""
        for name, recorder in self.sites.items():
            other = recorder.empty()
            other.load_state_dict(*_site_state(saved, name), device=self.device)
            recorder.merge(other)
        if self.smoothing is not None:
            self.smoothing.merge(_states(saved, "smoothing/"), self.device)
        facts = saved.facts
        self.n_images += facts["n_images"]
        self.skipped += facts["skipped"]
        self.notes += [note for note in facts["notes"] if note not in self.notes]

    def flush(self) -> None:
        """Check what has been seen, and write what belongs to single images.

        Raises
        ------
        NonFiniteError
            If an activation or an embedding is not finite.
        """
        for recorder in self.sites.values():
            recorder.check_finite()
        self._unflushed = 0
        arrays = {**self._embeddings(), **self._heads()}
        if self._rows is not None and self._rows.waiting:
            self.journal.add(self._rows.take(), arrays)

    def _record(self, name: str, activation: Tensor, *, hook: Any) -> None:
        assert self._batch is not None
        self.sites[name].update(activation, self._batch)

    def _keep_queries(self, queries: Tensor, *, hook: Any) -> None:
        self._queries = queries

    def _record_pattern(self, name: str, keys: Tensor, *, hook: Any) -> None:
        """Measure patterns from queries and keys, a few images at a time: none is kept whole."""
        assert self._queries is not None
        q, k = self._queries.transpose(1, 2), keys.transpose(1, 2)
        self._queries = None
        (n_heads, n_tokens), prefix = q.shape[1:3], self.hooked.n_prefix_tokens
        if self._distances is None or len(self._distances) != n_tokens:
            grid = square_grid(n_tokens - prefix)
            self._distances = patch_distances(grid, prefix, device=keys.device)
        attn = self.loaded.model.get_submodule(name)
        bias = attention_bias(attn, n_tokens)
        size = images_at_a_time(n_heads, n_tokens)
        scores = (
            pattern_logits(attn, attention_scores(attn, some_q, some_k, bias))
            for some_q, some_k in zip(q.split(size), k.split(size), strict=True)
        )
        values = pattern_statistics(scores, self._distances, prefix)
        self._patterns.add(name, values.transpose(0, 1))

    def _image_rows(self, n_logits: int) -> ImageRows:
        if self._rows is None:
            mismatch = describe.class_mismatch(self.loaded, self.source, n_logits)
            self.notes += [mismatch] if mismatch and mismatch not in self.notes else []
            self._rows = ImageRows(comparable=mismatch is None)
        return self._rows

    def _heads(self) -> dict[str, np.ndarray]:
        """Return what waits of every head, and of every unit if asked, by its name in the run."""
        pooled, patterns = self._pooled.take(), self._patterns.take()
        found: dict[str, np.ndarray] = {}
        norms = [pooled[name][:, 1] for name in self.head_sites if name in pooled]  # pool "mean"
        if norms:
            found["heads/output_norm"] = torch.stack(norms, dim=1).numpy()
        if self.options["pooled"]:
            found |= {f"pooled/{name}": values.numpy() for name, values in pooled.items()}
        if patterns:
            by_layer = torch.stack([patterns[name] for name in self.pattern_sites], dim=2)
            for i, name in enumerate(("pattern_entropy", "pattern_distance")):
                found[f"heads/{name}"] = by_layer[:, i].numpy()
        return found

    def _embeddings(self) -> dict[str, np.ndarray]:
        if not self._embedded:
            return {}
        assert self.embedder is not None
        parts = []
        for keys, embeddings in self._embedded:
            parts.append(embeddings.cpu().numpy())
            require_directions(parts[-1], keys, self.embedder.attrs["encoder"])
        self._embedded.clear()
        return {"embeddings": np.concatenate(parts)}


def _states(saved: Saved, prefix: str) -> dict[str, State]:
    """Return the states whose names begin so: of each part its tensors by name."""
    found: dict[str, State] = {}
    for name, values in saved.arrays.items():
        if name.startswith(prefix):
            part, _, key = name.removeprefix(prefix).rpartition("/")
            found.setdefault(part, {})[key] = torch.from_numpy(values)
    return found


def _site_state(saved: Saved, name: str) -> tuple[dict[str, State], tuple[int, int] | None]:
    grid = saved.facts["grids"][name]
    return _states(saved, f"sites/{name}/"), None if grid is None else tuple(grid)


def _set_training(modules: list[torch.nn.Module]) -> None:
    for module in modules:
        module.training = True


def _n_classes(source: ImageData) -> int:
    if source.labels is None:
        return 0
    return len(source.classes) if source.classes else int(source.labels.max()) + 1


def _pattern_sites(hooked: HookedVisionModel, recorded: list[str]) -> list[str]:
    """Return the attention layers whose heads are recorded, or all of them."""
    every = [n.removesuffix(".hook_k") for n in hooked.hook_dict if n.endswith(".attn.hook_k")]
    if not every:
        raise SpecError("this model has no attention patterns; leave out --patterns")
    with_heads = [n for n in every if f"{n}.hook_z" in recorded]
    return with_heads or every
