from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.balance import (
    EJECTION_MAX_S,
    EJECTION_S,
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
        assert row.dead <= (row.state is Rotation.EJECTED)
        assert row.ejections >= before.ejections or signal is Signal.CALM
        assert 0.0 <= row.ejection_s <= EJECTION_MAX_S


def test_server_errors_in_a_row_eject_and_a_success_clears_them() -> None:
    row = RotationRow()
    for _ in range(SERVER_ERRORS_MAX - 1):
        row = rotate(row, Signal.SERVER_ERROR, last=False)
    assert row.state is Rotation.IN
    assert rotate(row, Signal.SUCCESS, last=False) == RotationRow()
    assert rotate(row, Signal.SERVER_ERROR, last=False).state is Rotation.EJECTED
    assert rotate(row, Signal.SERVER_ERROR, last=True).state is Rotation.IN


def test_each_ejection_of_a_living_replica_is_longer_and_calm_makes_up_for_it() -> None:
    row = RotationRow()
    for n in range(1, 4):
        row = rotate(row, Signal.CUT, last=False)
        assert (row.state, row.ejection_s, row.doubtful) == (Rotation.EJECTED, n * EJECTION_S, True)
        assert rotate(row, Signal.CUT, last=False) == row
        row = rotate(rotate(row, Signal.PROBE_OK, last=False), Signal.SUCCESS, last=False)
    for left in (2, 1, 0, 0):
        row = rotate(row, Signal.CALM, last=False)
        assert (row.state, row.ejections) == (Rotation.IN, left)


def test_a_dead_replica_waits_for_nothing_and_is_no_last_resort() -> None:
    row = rotate(RotationRow(ejections=9), Signal.DEAD, last=True)
    assert (row.ejection_s, row.doubtful, row.ejections) == (0.0, False, 9)
    assert rotate(row, Signal.SERVER_ERROR, last=False) == row


def test_an_answer_of_a_replica_that_is_out_does_not_bring_it_back() -> None:
    row = rotate(RotationRow(), Signal.UNREACHABLE, last=False)
    assert rotate(row, Signal.SUCCESS, last=False).state is Rotation.EJECTED
    assert rotate(row, Signal.CALM, last=False) == row
