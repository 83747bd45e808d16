"""The command line run as from a shell, for the tests of its commands."""

import sys

import pytest

from polysem import cli


def polysem(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run polysem; return exit code, stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["polysem", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, *capsys.readouterr()
