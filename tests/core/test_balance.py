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


def after(*signals: Signal, last: bool = False, row: RotationRow | None = None) -> RotationRow:
    row = row or RotationRow()
    for signal in signals:
        row = rotate(row, signal, last=last)
    return row


def test_five_server_errors_in_a_row_eject_and_one_success_forgives_them() -> None:
    four = after(*[Signal.SERVER_ERROR] * (SERVER_ERRORS_MAX - 1))
    assert (four.state, four.server_errors) == (Rotation.IN, 4)
    assert after(Signal.SERVER_ERROR, row=four).state is Rotation.EJECTED
    assert after(Signal.SUCCESS, Signal.SERVER_ERROR, row=four) == RotationRow(server_errors=1)
    alone = after(*[Signal.SERVER_ERROR] * 9, last=True)
    assert (alone.state, alone.server_errors) == (Rotation.IN, 9)
    cut = after(Signal.CUT, row=four, last=True)
    assert cut == four, "a connection that ends is no answer, and no 5xx"


def test_one_doubt_is_enough_on_probation_and_for_what_gives_no_answer() -> None:
    trial = after(Signal.CUT, Signal.PROBE_OK)
    assert trial == RotationRow(Rotation.PROBATION, ejections=1)
    assert after(Signal.SERVER_ERROR, row=trial) == RotationRow(Rotation.EJECTED, ejections=2)
    assert after(Signal.SUCCESS, row=trial) == RotationRow(Rotation.IN, ejections=1)
    for signal in (Signal.UNREACHABLE, Signal.CUT):
        assert after(signal) == RotationRow(Rotation.EJECTED, ejections=1)
    out = after(Signal.CUT)
    for signal in (Signal.SERVER_ERROR, Signal.CUT, Signal.SUCCESS, Signal.CALM):
        assert after(signal, row=out) == out, "only a probe brings it back"
    assert after(Signal.PROBE_OK) == RotationRow()


def test_each_ejection_is_longer_and_calm_makes_up_for_one() -> None:
    assert RotationRow(Rotation.EJECTED, ejections=1).ejection_s == EJECTION_S
    assert RotationRow(Rotation.EJECTED, ejections=3).ejection_s == 3 * EJECTION_S
    assert RotationRow(Rotation.EJECTED, ejections=1000).ejection_s == EJECTION_MAX_S
    assert RotationRow(Rotation.EJECTED, ejections=3, dead=True).ejection_s == 0.0, "a probe decides at once"
    assert after(Signal.CALM, row=RotationRow(ejections=2)).ejections == 1
    assert after(Signal.CALM).ejections == 0
    trial = RotationRow(Rotation.PROBATION, ejections=2)
    assert after(Signal.CALM, row=trial) == trial


def test_death_is_no_fault_and_no_doubt() -> None:
    dead = after(Signal.DEAD, row=RotationRow(ejections=2, server_errors=3), last=True)
    assert dead == RotationRow(Rotation.EJECTED, ejections=2, dead=True)
    assert not dead.doubtful
    assert after(Signal.CUT).doubtful
    assert not RotationRow().doubtful
    assert after(Signal.PROBE_OK, row=dead) == RotationRow(Rotation.PROBATION, ejections=2)
