"""A few spoilt files of every kind that polysem reads; `long.py` does the same many times over."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from targets import TARGETS, Target, try_once

#: Trials of each; a run is opened by whole commands, and Hugging Face's loader takes its time.
_FEW = {"run": 4, "names": 2, "hugging_face": 6}


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    target: Target = request.param
    valid = tmp_path_factory.mktemp("valid")
    target.prepare(valid)
    return target, valid


@pytest.mark.filterwarnings("ignore")
def test_what_is_spoilt_gives_a_sentence_or_a_result(prepared: tuple[Target, Path]) -> None:
    target, valid = prepared

    @seed(0)
    @settings(
        max_examples=_FEW.get(target.name, 25), deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(number=st.integers(0, 2**32 - 1))
    def trial(number: int) -> None:
        with tempfile.TemporaryDirectory() as root:
            outcome = try_once(target, number, valid, Path(root))
        assert outcome.kind != "traceback", f"{outcome.error} (long.py --seed {number})"
        assert not outcome.code_run and not outcome.outside

    trial()
