"""The command line: one file a command, which parses, calls one function and prints.

Nothing heavy is imported before a command runs, so that ``polysem --help`` answers at once.
"""

from __future__ import annotations

import sys

import typer

from polysem.cli.bcosify import bcosify
from polysem.cli.bench import bench
from polysem.cli.circuits import circuits
from polysem.cli.clusters import clusters
from polysem.cli.compare import compare
from polysem.cli.compare_heads import compare_heads
from polysem.cli.concepts import concepts
from polysem.cli.demo import demo
from polysem.cli.describe_neurons import describe_neurons
from polysem.cli.embed import embed
from polysem.cli.evolve import evolve
from polysem.cli.explain import explain
from polysem.cli.facets import facets
from polysem.cli.heads import heads
from polysem.cli.localise import localise
from polysem.cli.polysemanticity import polysemanticity
from polysem.cli.probe import probe
from polysem.cli.report import report
from polysem.cli.sanity import sanity
from polysem.cli.show import show
from polysem.cli.train import train
from polysem.errors import PolysemError
from polysem.launch import forget_the_others, launched

__all__ = ["app", "main"]

app = typer.Typer(
    help="Find out what the neurons and attention heads of vision transformers do.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
#: Commands whose work several processes share; of all others the first process does all.
_SHARED = ("embed", "heads", "probe", "train")


@app.callback()
def _once(context: typer.Context) -> None:
    if context.invoked_subcommand in _SHARED:
        return
    if not launched().first:
        raise typer.Exit()
    forget_the_others()


for _command in (
    probe,
    show,
    embed,
    polysemanticity,
    facets,
    concepts,
    clusters,
    circuits,
    heads,
    compare,
    compare_heads,
    describe_neurons,
    evolve,
    explain,
    localise,
    sanity,
    report,
    train,
    bcosify,
    demo,
):
    app.command()(_command)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line; a `PolysemError` becomes one sentence and exit code 2."""
    try:
        app()
    except PolysemError as error:
        print(f"polysem: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("polysem: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has enough of it
        sys.exit(141)
