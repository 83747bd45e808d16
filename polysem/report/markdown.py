"""Text and tables as Markdown that shows them as they are, on GitHub and elsewhere."""

from __future__ import annotations

import re

import pandas as pd

__all__ = ["escaped", "markdown_table"]


def escaped(text: str) -> str:
    r"""Return text that Markdown and HTML show as it is, on one line, also within a table.

    >>> escaped("a|b <i> *c*")
    'a\\|b &lt;i&gt; \\*c\\*'
    """
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])|^(?=[#+-])", lambda found: "\\" + found[0], text)


def markdown_table(table: pd.DataFrame) -> list[str]:
    """Return the lines of a table; text in it is shown as it is."""
    rows = [list(map(str, table.columns)), ["---"] * table.shape[1], *table.astype(str).to_numpy()]
    cells = [[c if c == "---" else escaped(c) for c in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in cells]
