from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.balance import (
    SERVER_ERRORS_MAX,
    Candidate,
    Rotation,
    RotationRow,
    Signal,
    choose,
    eligible,
    rotate,
)

candidates = st.lists(
    st.builds(
        Candidate, in_flight=st.integers(0, 50), rotation=st.sampled_from(Rotation), avoid=st.booleans()
    ),
    max_size=12,
)
policies = st.sampled_from(["least_inflight", "round_robin", "something newer"])


@given(candidates, policies, st.integers(0, 1000))
def test_choice_is_always_in_rotation_and_there_is_one_where_one_is_ready(
    rows: list[Candidate], policy: str, cursor: int
) -> None:
    index = choose(policy, rows, cursor)
    usable = [c for c in rows if c.rotation in {Rotation.IN, Rotation.PROBATION}]
    if index is None:
        assert not usable
        return
    chosen = rows[index]
    assert chosen.rotation in {Rotation.IN, Rotation.PROBATION}
    if chosen.rotation is Rotation.PROBATION and any(c.rotation is Rotation.IN for c in rows):
        assert chosen.in_flight == 0
    if chosen.avoid:
        assert not any(not c.avoid and c.rotation is Rotation.IN for c in rows)
    if policy == "least_inflight":
        assert chosen.in_flight == min(rows[i].in_flight for i in eligible(rows))


@given(st.integers(1, 8), policies, st.integers(1, 5))
def test_equal_replicas_take_turns(count: int, policy: str, rounds: int) -> None:
    rows = [Candidate(3, Rotation.IN)] * count
    cursor, taken = 0, [0] * count
    for _ in range(count * rounds):
        index = choose(policy, rows, cursor)
        assert index is not None
        taken[index] += 1
        cursor = index + 1
    assert taken == [rounds] * count


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
