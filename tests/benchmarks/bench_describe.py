"""What soft-WPMI costs against CLIP-Dissect's formulation, on the same tensors in one run.

    python tests/benchmarks/bench_describe.py [--units 3072] [--images 10000] [--concepts 20000]

CLIP-Dissect's formulation (Oikarinen and Weng 2023) holds the softmax [image, concept] and, unit
by unit, the logs of [exemplar, concept]; it is timed on a share of the units, `--share`, and its
time multiplied. What the scores of all units would add to its memory is left out. Each runs in a
process of its own, whose peak memory is told. With `--large` ours runs at 50,000 images, 20,000
concepts and 36,864 units, on two chunks of the concepts: memory does not depend on how many follow.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import torch

EXEMPLARS, DIM = 100, 512


def tensors(n_images: int, n_concepts: int, n_units: int) -> tuple[torch.Tensor, ...]:
    """Return image and text embeddings, and exemplars [unit, rank]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_images, DIM, generator=generator)
    texts = torch.randn(n_concepts, DIM, generator=generator)
    exemplars = torch.randint(n_images, (n_units, EXEMPLARS), generator=generator)
    return images, texts, exemplars


def dissect_chance(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return the softmax over concepts that the published form starts from [image, concept]."""
    unit = torch.nn.functional.normalize
    return torch.softmax(10 * unit(images, dim=1) @ unit(texts, dim=1).T, dim=1)


def dissect(chance: torch.Tensor, exemplars: torch.Tensor) -> torch.Tensor:
    """Return the best concepts by the published form [unit, rank]."""
    trust = torch.tensor([0.998 - rank / EXEMPLARS * 0.028 for rank in range(EXEMPLARS)])[:, None]
    rows = [torch.log(1 + trust * (chance[each] - 1) + 1e-7).sum(0) for each in exemplars]
    found = torch.stack(rows)
    score = found - (torch.logsumexp(found, 0) - torch.tensor(float(len(found))).log())
    return score.topk(5, dim=1).indices


def ours(
    images: torch.Tensor, texts: torch.Tensor, exemplars: torch.Tensor, prior: str = "layer"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best concepts by polysem."""
    from polysem.describe.pmi import soft_wpmi
    from polysem.describe.scoring import best_concepts
    from polysem.describe.view import View

    view = View(images, texts)
    return best_concepts(soft_wpmi(exemplars, view, prior=prior), view, 5)  # type: ignore[arg-type]


def _measured(job: str, sizes: tuple[int, int, int], share: float, pipe: object) -> None:
    torch.set_num_threads(1)
    images, texts, exemplars = tensors(*sizes)
    if job == "dissect":
        exemplars = exemplars[: max(1, int(share * len(exemplars)))]
    ours(images[:100], texts[:10], exemplars[:2].clamp(max=99))  # imports and warm-up
    before, start = _peak(), time.process_time()
    if job == "dissect":
        chance = dissect_chance(images, texts)
        common, start = time.process_time() - start, time.process_time()
        dissect(chance, exemplars)
        seconds = common + (time.process_time() - start) / share
    elif job == "large":
        chunks = texts[:512]
        ours(images, chunks, exemplars, prior="images")
        seconds = (time.process_time() - start) * len(texts) / len(chunks)
    else:
        ours(images, texts, exemplars, prior="images" if job == "ours, images" else "layer")
        seconds = time.process_time() - start
    pipe.send((seconds, _peak(), before))  # type: ignore[attr-defined]


def _peak() -> float:
    """Return the most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measured(job: str, sizes: tuple[int, int, int], share: float) -> tuple[float, float, float]:
    """Return CPU seconds, peak GB and GB before of one job in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ends = context.Pipe()
    process = context.Process(target=_measured, args=(job, sizes, share, ends[1]))
    process.start()
    found: tuple[float, float, float] = ends[0].recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=3072)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--concepts", type=int, default=20_000)
    parser.add_argument("--share", type=float, default=1 / 32)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    if given.large:
        sizes = (50_000, 20_000, 36_864)
        seconds, peak, before = measured("large", sizes, 1)
        print(f"{sizes}: peak {peak:.2f} GB ({before:.2f} before), {seconds:.0f} CPU s by chunks")
        return
    sizes = (given.images, given.concepts, given.units)
    print(f"{given.units:,} units, {given.images:,} images, {given.concepts:,} concepts, 1 thread")
    found = {job: measured(job, sizes, given.share) for job in ("dissect", "ours", "ours, images")}
    for job, (seconds, peak, before) in found.items():
        print(
            f"{job:>14}: {seconds:8.1f} CPU s, peak {peak:.2f} GB ({before:.2f} with the tensors)"
        )
    for job in ("ours", "ours, images"):
        faster = found["dissect"][0] / found[job][0]
        memory = (found[job][1] - found[job][2]) / (found["dissect"][1] - found["dissect"][2])
        print(f"{job:>14}: {faster:.1f} times faster, {memory:.2f} of the memory besides tensors")


if __name__ == "__main__":
    main()
