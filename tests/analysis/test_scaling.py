"""One scale for all units: laws of `unit_interval`."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polysem.analysis.scaling import nan_if_constant, unit_interval

ACTIVATIONS = hnp.arrays(
    np.float64, (6, 3), elements=st.floats(-100, 100, allow_nan=False, width=16)
)


@settings(deadline=None, max_examples=40)
@given(values=ACTIVATIONS, scale=st.sampled_from([0.5, 4.0]), shift=st.sampled_from([-8.0, 16.0]))
def test_offset_and_scale_do_not_matter(values: np.ndarray, scale: float, shift: float) -> None:
    found = unit_interval(values)
    np.testing.assert_allclose(unit_interval(values * scale + shift), found, atol=1e-9)
    varying = np.ptp(values, axis=0) > 0
    assert np.isnan(found[:, ~varying]).all()
    assert (found[:, varying].min(0) == 0).all()
    assert (found[:, varying].max(0) == 1).all()


def test_a_score_is_missing_where_nothing_changes() -> None:
    values = np.array([[1.0, 2.0], [1.0, 3.0]])
    np.testing.assert_array_equal(nan_if_constant([5, 6], values), [np.nan, 6])
