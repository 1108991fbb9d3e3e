from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.replay import BODY_MAX_BYTES, BUDGET_BURST, DEATHS_MAX, Failure, RetryBudget, decide

facts = st.fixed_dictionaries(
    {
        "begun": st.booleans(),
        "body_bytes": st.sampled_from([0, 1, BODY_MAX_BYTES, BODY_MAX_BYTES + 1]),
        "stored": st.booleans(),
        "deaths": st.integers(0, 5),
        "other_ready": st.booleans(),
        "time_left_s": st.sampled_from([-1.0, 0.0, 0.5, float("inf")]),
    }
)


@given(st.sampled_from(Failure), facts)
def test_what_no_failure_may_break(failure: Failure, given_facts: dict[str, object]) -> None:
    decision = decide(failure, **given_facts)  # type: ignore[arg-type]
    if decision.replay:
        assert not given_facts["begun"]
        assert given_facts["time_left_s"] > 0  # type: ignore[operator]
        if failure is not Failure.CONNECT:
            assert not given_facts["stored"]
            assert given_facts["body_bytes"] <= BODY_MAX_BYTES  # type: ignore[operator]
        if failure is Failure.DEATH:
            assert given_facts["deaths"] < DEATHS_MAX  # type: ignore[operator]
        if failure in {Failure.EOF, Failure.SERVER_ERROR}:
            assert decision.draws
            assert given_facts["other_ready"]
        if given_facts["deaths"] > 1:  # type: ignore[operator]
            assert decision.serial
    else:
        assert decision.why


def test_first_death_is_free_even_with_no_other_replica_and_the_second_is_serial() -> None:
    first = decide(
        Failure.DEATH, begun=False, body_bytes=1, stored=False, deaths=1, other_ready=False, time_left_s=1.0
    )
    assert (first.replay, first.draws, first.serial) == (True, False, False)
    second = decide(
        Failure.DEATH, begun=False, body_bytes=1, stored=False, deaths=2, other_ready=False, time_left_s=1.0
    )
    assert (second.replay, second.draws, second.serial) == (True, False, True)


def test_a_connection_that_never_was_always_goes_elsewhere() -> None:
    decision = decide(
        Failure.CONNECT, begun=False, body_bytes=BODY_MAX_BYTES * 9, stored=True, deaths=0, other_ready=False,
        time_left_s=1.0,
    )  # fmt: skip
    assert decision.replay
    assert not decision.draws


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans()), max_size=200))
def test_budget_never_exceeds_burst_plus_rate_plus_a_tenth(steps: list[tuple[float, bool]]) -> None:
    now, deposits, taken = 0.0, 0, 0
    budget = RetryBudget(now)
    for passed_s, is_request in steps:
        now += passed_s
        if is_request:
            budget.deposit(now)
            deposits += 1
        else:
            taken += budget.withdraw(now)
        assert taken <= BUDGET_BURST + 3.0 * now + 0.1 * deposits + 1e-6


def test_budget_gives_at_least_three_a_second_without_any_request() -> None:
    budget = RetryBudget(0.0)
    while budget.withdraw(0.0):
        pass
    assert [budget.withdraw(1.0) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_stands_still_or_goes_back_adds_nothing() -> None:
    budget = RetryBudget(100.0)
    while budget.withdraw(100.0):
        pass
    assert not budget.withdraw(50.0)
    assert budget.tokens == pytest.approx(0.0)
