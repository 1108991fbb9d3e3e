"""How long full capacity is away after a crash, against what one start takes anyway: the short form of `make recovery`."""

from __future__ import annotations

import os

import pytest
from tests.e2e.box import Box
from tests.e2e.recovery import OVER_WARM, measure, sim_profile
from tests.faults.table import Measured

LOAD_S = 15.0 if os.environ.get("GPUSERVE_TEST_SLOW") else 3.0
FIXED_S = 0.0 if os.environ.get("GPUSERVE_TEST_SLOW") else 20.0
"""The short form runs beside other tests, and loads in three seconds, of which the first back-off alone (1 s) is a third: only what goes
wrong altogether fails it."""


@pytest.mark.alone
@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.timeout(300)
def test_full_capacity_is_back_soon_after_a_warm_start(box: Box, measured: Measured) -> None:
    """GPUSERVE_TEST_SLOW=1 loads for 15 s, and asks for what is promised: 1.2 times a warm start."""
    figures = measure(box, "look-alike", sim_profile(LOAD_S), 1, 120)
    for crashes in figures.crashes.values():
        (took,), (warm_s,) = crashes.recover_s, crashes.warm_s
        assert warm_s >= LOAD_S
        assert took <= OVER_WARM * warm_s + FIXED_S, figures.rows()
    measured.recover_s = max(took for each in figures.crashes.values() for took in each.recover_s)
    measured.detect_s = max(took for each in figures.crashes.values() for took in each.detect_s)
    measured.failed, measured.answered = figures.failed, figures.answered
    assert figures.failed == 0
