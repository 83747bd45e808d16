"""``polysem explain``: from a model and images to maps of why something fired."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polysem.errors import SpecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polysem.data.dataset import ImageData
    from polysem.explain.explain import Explanations
    from polysem.models.load import LoadedModel

_SHOWN = 12  # images in the overview


def explain(
    model: Annotated[
        str, typer.Option(help="Checkpoint file, or timm:NAME, hf-hub:ORG/NAME, bcos:NAME, folder.")
    ],
    image: Annotated[
        list[Path] | None, typer.Option(help="An image file; may be given several times.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Image folder, parquet, archive, hub:ORG/NAME, or shapes.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Explain the exemplars of this run, into the run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of pictures, arrays, index.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Class, or site:unit[:lower][:mean]. Default: the predicted class."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Methods, separated by commas; all that the model can have.")
    ] = "all",
    limit: Annotated[
        int | None, typer.Option(help="Explain a random sample of so many images.", min=1)
    ] = 12,
    smooth: Annotated[
        int | None, typer.Option(help="Window that smooths colour explanations, odd, px.")
    ] = None,
    percentile: Annotated[
        float, typer.Option(help="Of contribution strength, above which colour is opaque.")
    ] = 99.5,
    ground: Annotated[
        Literal["white", "black", "transparent"], typer.Option(help="Of colour explanations.")
    ] = "white",
    upstream: Annotated[
        bool,
        typer.Option(
            "--upstream",
            help="With --run: instead of maps, which units of the previous site of its kind made "
            "each exemplar fire, for polysem facets --by circuits.",
        ),
    ] = False,
    sites: Annotated[
        str | None,
        typer.Option(
            help="With --run: globs of sites. Default: all of the run; with --upstream the last "
            "of neurons or channels, as 1,024 units take 64 MB and more.",
        ),
    ] = None,
    exemplars: Annotated[
        int | None, typer.Option(help="With --run: so many of each tail. Default: all.", min=1)
    ] = None,
    cells: Annotated[
        int | None, typer.Option(help="With --run: cells along a map. Default: the patches.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of the sample of images.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="Weights file for timm:NAME or bcos:NAME.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm name of a bare state dict's architecture.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the explanations that are there.")
    ] = False,
) -> None:
    """Show what in an image made a class, a neuron or a head fire.

    B-cos networks are explained exactly and in colour, others by class activation maps, attention
    and gradients. Writes overview.png, images/, maps.npz and index.csv; with --run, contribution
    maps of all exemplars into the run, or with --upstream what made them fire one site before.

    Example: [bold]polysem explain --model ckpt.pt --image cat.jpg --out why[/bold]

    A neuron: [bold]polysem explain --model ckpt.pt --data photos/ --out why --target
    blocks.3.mlp.hook_post:17[/bold]
    """
    if sum(given is not None for given in (image or None, data, run)) != 1 and (
        run is None or image
    ):
        raise SpecError("say what to explain: one of --image FILE, --data D, --run RUN")
    if run is None and out is None:
        raise SpecError("say where to write: --out FOLDER")
    if run is not None and (out is not None or target is not None):
        raise SpecError("with --run, maps of all units go into the run: leave --out, --target out")
    if run is not None and method != "all":
        raise SpecError("with --run the maps are W(x), or input times gradient: leave --method out")
    if run is None and (upstream or (sites, exemplars, cells) != (None, None, None)):
        raise SpecError("--sites, --exemplars, --cells and --upstream belong to --run")
    if upstream and cells is not None:
        raise SpecError("--cells are those of maps, and --upstream makes none: leave one out")
    import torch

    from polysem.explain.pictures import open_model
    from polysem.explain.write import require_free

    if out is not None:
        require_free(out, overwrite=overwrite)
    torch.manual_seed(0)  # timm:NAME without weights draws them: the same in every run
    loaded = open_model(model, device, weights=weights, arch=arch)
    if run is not None:
        if upstream:
            _trace_run(run, loaded, data, sites, exemplars, device)
        else:
            _explain_run(run, loaded, data, sites, exemplars, cells, device)
        return
    assert out is not None
    from polysem.explain.explain import explain as explain_images
    from polysem.explain.explain import image_files
    from polysem.explain.write import write_explanations
    from polysem.report.page import save

    source: str | ImageData = image_files(image) if image else str(data)
    found = explain_images(
        loaded, source, target=target, methods=method, limit=None if image else limit,
        smooth=smooth, percentile=percentile, batch_size=batch_size, device=device, seed=seed,
    )  # fmt: skip
    said = f"{model}, {source if isinstance(source, str) else source.name}"
    facts = {"model": model, "model_sha256": loaded.sha256, "data": said, "target": target}
    figure = _overview(found, said)
    write_explanations(
        found, out, ground=ground, overwrite=overwrite, facts=facts,
        more={"overview.png": lambda file: save(figure, file)},
    )  # fmt: skip
    for reason in found.skipped:
        print(f"left out: {reason}")
    print(f"explained {len(found.keys)} images by {len(found.maps)} methods")
    if found.added is not None and "bcos" in found.maps:
        worst = found.table()["error"].abs().max()
        print(f"bcos: W(x) and what is added make up each value to within {worst:.1e}")
    print(f"wrote {out}; look at {out / 'overview.png'}")


def _explain_run(
    run: Path,
    loaded: LoadedModel,
    data: str | None,
    sites: str | None,
    exemplars: int | None,
    cells: int | None,
    device: str,
) -> None:
    from polysem.explain.run_maps import explain_run

    store = explain_run(
        run, loaded, sites=sites, data=data, exemplars=exemplars, cells=cells, device=device
    )
    print(f"wrote {store}; read it with Run.open({str(run)!r}).contributions(SITE)")


def _trace_run(
    run: Path,
    loaded: LoadedModel,
    data: str | None,
    sites: str | None,
    exemplars: int | None,
    device: str,
) -> None:
    from polysem.explain.upstream import upstream

    store = upstream(run, loaded, sites=sites, data=data, exemplars=exemplars, device=device)
    print(f"wrote {store}; divide it into circuits with: polysem facets {run} --by circuits")


def _overview(found: Explanations, said: str) -> Figure:
    from polysem.report.explanations import gallery_figure
    from polysem.report.page import number

    colours = None if found.colours is None else found.colours[:_SHOWN]
    one = found.targets[0] if len(set(found.targets)) == 1 else None
    what = "the predicted class" if one is None else one
    # a unit has a name too long to stand beside each image: how strongly it fired says more
    unit = one is not None and ":" in one
    titles = [number(value) for value in found.values] if unit else found.targets
    return gallery_figure(
        found.pixels[:_SHOWN],
        {name: maps[:_SHOWN] for name, maps in found.maps.items()},
        titles[:_SHOWN],
        colours=colours,
        title=f"Why {what}: {found.model}",
        subtitle=said,
    )
