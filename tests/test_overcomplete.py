"""overcomplete imports beside any matplotlib, which is left as it was."""

import subprocess
import sys
from typing import Any

import pytest

from polysem._overcomplete import import_overcomplete
from polysem.errors import MissingError


def test_it_imports_in_a_fresh_process_and_matplotlib_stays_as_it_was() -> None:
    code = (
        "import matplotlib.cm as cm; before = hasattr(cm, 'get_cmap')\n"
        "from polysem._overcomplete import import_overcomplete\n"
        "assert import_overcomplete().NMF and hasattr(cm, 'get_cmap') == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *rest: Any) -> Any:
        raise ModuleNotFoundError(name, name="overcomplete")

    monkeypatch.setattr("polysem._overcomplete.importlib.import_module", absent)
    with pytest.raises(MissingError, match=r"pip install .polysem\[dictionaries\]"):
        import_overcomplete()
