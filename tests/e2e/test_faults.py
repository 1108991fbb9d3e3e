"""Replicas die under load, and clients that had not begun to hear an answer never notice.

The tests run in order on one fleet: each begins with two READY replicas and leaves two behind.
"""

from __future__ import annotations

import signal
import time

import pytest
from tests.e2e.box import Json, kill, until
from tests.e2e.clients import open_streams
from tests.e2e.strikes import LATE_S, Struck, both_ready, strike
from tests.e2e.texts import SERVED, Fleet
from tests.faults.table import Measured

HUNG = r"(?i)hung|without a step|no progress|stopped stepping"


@pytest.mark.fault(1)
@pytest.mark.fault(6)  # the look-alike's tree has a child that left session and group
def test_the_api_process_is_killed(fleet: Fleet, measured: Measured) -> None:
    struck = strike(fleet, "tiny-0", lambda row: kill(row["pid"]), measured, detect_s=1.0)
    struck.replaced("SIGKILL")


@pytest.mark.fault(2)
def test_the_engine_core_is_killed(fleet: Fleet, measured: Measured) -> None:
    struck = strike(fleet, "tiny-1", lambda row: kill(fleet.engine_core(row).pid), measured, detect_s=1.0)
    struck.replaced(r"(?i)engine")


@pytest.mark.fault(5)
def test_the_engine_core_hangs(fleet: Fleet, measured: Measured) -> None:
    def stop(row: Json) -> float:
        return kill(fleet.engine_core(row).pid, signal.SIGSTOP)

    struck = strike(fleet, "tiny-0", stop, measured, detect_s=30)
    struck.replaced(HUNG)


@pytest.mark.fault(4)
def test_the_api_process_hangs(fleet: Fleet, measured: Measured) -> None:
    """A stopped API process accepts connections and answers nothing, not even /health."""
    both_ready(fleet)
    before = fleet.replica("tiny-1")
    tree = fleet.tree(before["shim_pid"])
    at = kill(before["pid"], signal.SIGSTOP)
    until(lambda: fleet.rotation("tiny-1") != "in", "out of rotation", 60)
    measured.detect_s = time.monotonic() - at
    struck = Struck(fleet, before, tree, at, measured)
    struck.replaced(r"(?i)health|liveness|answer|hung|without a step")


def idle(fleet: Fleet) -> bool:
    stats = fleet.router_stats()
    return stats is not None and all(row["in_flight"] == 0 for row in stats["replicas"])


@pytest.mark.fault(19)
def test_a_client_that_leaves_frees_its_place(fleet: Fleet, measured: Measured) -> None:
    both_ready(fleet)
    # The look-alike would go on for more than two minutes.
    tokens = 7000 if fleet.flavour.engine == "sim" else fleet.flavour.stream_tokens
    streams = open_streams(fleet.endpoint, SERVED, 1, tokens, hang_up_after=3)
    streams.join()
    gone_at = time.monotonic()
    until(lambda: idle(fleet), "in-flight counts back to 0", 60)
    measured.recover_s = time.monotonic() - gone_at
    assert measured.recover_s < 1.0 + LATE_S
