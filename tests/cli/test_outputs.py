from pathlib import Path

import pytest

from polysem.cli.outputs import require_free
from polysem.errors import RunError


def test_only_free_folders_and_own_results_are_written_to(tmp_path: Path) -> None:
    require_free(tmp_path / "new", ("a.csv",), overwrite=False)
    require_free(tmp_path, ("a.csv",), overwrite=False)
    (tmp_path / "a.csv").write_text("")
    require_free(tmp_path, ("a.csv", "b.png"), overwrite=True)
    with pytest.raises(RunError, match="already holds results"):
        require_free(tmp_path, ("a.csv", "b.png"), overwrite=False)
    with pytest.raises(RunError, match="is a file"):
        require_free(tmp_path / "a.csv", ("a.csv",), overwrite=True)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(RunError, match=r"something else \(x.txt\)"):
        require_free(tmp_path, ("a.csv",), overwrite=True)
