"""From the log of a training to a picture of it: loss, accuracy and learning rate by epoch."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polysem.errors import RunError

__all__ = ["draw_curves"]

_TRAINING, _TEST, _AVERAGE = "#8c8c8c", "#1f5fa8", "#d1641b"


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draw the lines of a log and write them as a PNG, whole or not at all.

    Parameters
    ----------
    records : sequence of mapping
        Lines of ``log.jsonl``, in order.
    path : Path
    title : str

    Raises
    ------
    RunError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure  # dear to import, and needed once

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in records]
    style = {"marker": "o", "markersize": 3} if len(records) < 40 else {}

    def line(axes: Any, key: str, label: str, colour: str, scale: float = 1) -> None:
        values = [scale * record[key] for record in records if key in record]
        if values:
            axes.plot(epochs[-len(values) :], values, label=label, color=colour, **style)

    line(losses, "train_loss", "training", _TRAINING)
    line(losses, "test_loss", "test", _TEST)
    line(accuracies, "train_accuracy", "training", _TRAINING, 100)
    line(accuracies, "test_accuracy", "test", _TEST, 100)
    line(accuracies, "average_test_accuracy", "test, averaged weights", _AVERAGE, 100)
    line(rates, "lr", "learning rate", _TRAINING)
    for axes, name in ((losses, "loss"), (accuracies, "accuracy, %"), (rates, "learning rate")):
        axes.set(xlabel="epoch", title=name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    for axes in (losses, accuracies):
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(picture.getvalue())
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
