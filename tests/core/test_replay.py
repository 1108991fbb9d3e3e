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


def decided(failure: Failure, **more: object) -> tuple[bool, bool, bool]:
    plain: dict[str, object] = {
        "begun": False, "body_bytes": BODY_MAX_BYTES, "stored": False, "deaths": 0, "other_ready": True, "time_left_s": 1.0,
    } | more  # fmt: skip
    decision = decide(failure, **plain)  # type: ignore[arg-type]
    return decision.replay, decision.draws, decision.serial


@pytest.mark.parametrize("failure", Failure)
def test_a_request_that_nothing_speaks_against_is_sent_again(failure: Failure) -> None:
    draws = failure in {Failure.EOF, Failure.SERVER_ERROR}
    assert decided(failure) == (True, draws, False)
    assert decided(failure, deaths=1) == (True, draws, False), "one death may be chance"
    assert decided(failure, deaths=2) == (True, draws, True), "two make it a suspect"
    assert decided(failure, body_bytes=BODY_MAX_BYTES + 1)[0] == (failure is Failure.CONNECT)
    assert decided(failure, deaths=DEATHS_MAX)[0] == (failure is not Failure.DEATH)
    assert decided(failure, other_ready=False)[0] == (not draws)
    assert not decided(failure, time_left_s=0.0)[0]
    assert not decided(failure, begun=True)[0]


def test_why_not() -> None:
    told = decide(
        Failure.DEATH, begun=False, body_bytes=1, stored=False, deaths=3, other_ready=True, time_left_s=9.0
    )
    assert told.why == "3 replicas died while they served it"


def test_the_limits_that_the_documents_name() -> None:
    assert (BODY_MAX_BYTES, DEATHS_MAX, BUDGET_BURST) == (8 * 1024**2, 3, 30.0)


def test_the_budget_refills_by_requests_and_time_and_never_beyond_its_burst() -> None:
    budget = RetryBudget(0.0)
    budget.deposit(100.0)
    assert budget.tokens == BUDGET_BURST
    while budget.withdraw(100.0):
        pass
    for _ in range(25):
        budget.deposit(100.0)
    assert [budget.withdraw(100.0) for _ in range(3)] == [True, True, False], "a tenth of 25 requests"
    budget.deposit(100.5)
    assert budget.tokens == pytest.approx(0.5 + 1.5 + 0.1)
    budget.deposit(90.0)
    budget.deposit(100.5)
    assert budget.tokens == pytest.approx(2.3), "a clock that went back adds no time, then or later"
