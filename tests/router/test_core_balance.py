from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.balance import (
    SERVER_ERRORS_MAX,
    Rotation,
    RotationRow,
    Signal,
    rotate,
)


@given(st.lists(st.tuples(st.sampled_from(Signal), st.booleans()), max_size=40))
def test_machine_ejects_the_last_replica_only_when_dead_and_returns_through_probation(
    steps: list[tuple[Signal, bool]],
) -> None:
    row = RotationRow()
    for signal, last in steps:
        before, row = row, rotate(row, signal, last=last)
        assert row.state is not Rotation.OUT
        if signal is Signal.DEAD:
            assert row.state is Rotation.EJECTED
        if before.state is not Rotation.EJECTED and row.state is Rotation.EJECTED:
            assert signal is Signal.DEAD or not last
        if before.state is Rotation.EJECTED and row.state is not Rotation.EJECTED:
            assert (signal, row.state) == (Signal.PROBE_OK, Rotation.PROBATION)
        if before.state is Rotation.PROBATION and row.state is Rotation.IN:
            assert signal is Signal.SUCCESS


def test_server_errors_in_a_row_eject_and_a_success_clears_them() -> None:
    row = RotationRow()
    for _ in range(SERVER_ERRORS_MAX - 1):
        row = rotate(row, Signal.SERVER_ERROR, last=False)
    assert row.state is Rotation.IN
    assert rotate(row, Signal.SUCCESS, last=False) == RotationRow()
    assert rotate(row, Signal.SERVER_ERROR, last=False).state is Rotation.EJECTED
    assert rotate(row, Signal.SERVER_ERROR, last=True).state is Rotation.IN
