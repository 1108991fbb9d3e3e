"""What holds for every policy, and what makes each of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.balance import Rotation
from gpuserved.core.policy.base import SLOW_START_MIN, UNTIED, Ask, Candidate, eligible, load, ramp
from gpuserved.core.policy.least_inflight import LeastInflight
from gpuserved.core.policy.make import make_policy
from gpuserved.core.policy.mirror import Mirror
from gpuserved.core.policy.prefix_key import PrefixKey
from gpuserved.core.policy.session import FREE_IN_FLIGHT, Session, session_key

NAMES = ("least_inflight", "round_robin", "session", "prefix", "something newer")
KEY = PrefixKey((b"a" * 8, b"b" * 8), (400, 900), 1000)
candidate = st.builds(
    Candidate, in_flight=st.integers(0, 50), rotation=st.sampled_from(Rotation), avoid=st.booleans(),
    weight=st.floats(0.01, 100), ramp=st.floats(SLOW_START_MIN, 1), identity=st.integers(0, 2**64 - 1),
    mirror=st.just(Mirror()), queued_tokens=st.floats(0, 1e6),
)  # fmt: skip
candidates = st.lists(candidate, max_size=12, unique_by=lambda c: c.identity)
asks = st.builds(Ask, session=st.none() | st.integers(0, 2**64 - 1), prefix=st.sampled_from([None, KEY]))


def fleet(*in_flight: int, weights: tuple[float, ...] = ()) -> list[Candidate]:
    return [
        Candidate(n, Rotation.IN, weight=weights[i] if weights else 1.0, identity=session_key(f"r-{i}"), mirror=Mirror())
        for i, n in enumerate(in_flight)
    ]  # fmt: skip


@given(candidates, st.sampled_from(NAMES), asks)
def test_choice_is_in_rotation_and_there_is_one_where_one_is_ready(
    rows: list[Candidate], name: str, ask: Ask
) -> None:
    index = make_policy(name).choose(ask, rows)
    usable = [c for c in rows if c.rotation in {Rotation.IN, Rotation.PROBATION}]
    if index is None:
        assert not usable
        assert not any(c.doubtful for c in rows)
        return
    assert index in eligible(rows)
    chosen = rows[index]
    if not usable:
        assert chosen.doubtful
        return
    assert chosen.rotation in {Rotation.IN, Rotation.PROBATION}
    if chosen.rotation is Rotation.PROBATION and any(c.rotation is Rotation.IN for c in rows):
        assert chosen.in_flight == 0
    if chosen.avoid:
        assert not any(not c.avoid and c.rotation is Rotation.IN for c in rows)
    if name == "least_inflight":
        assert load(chosen) == min(load(rows[i]) for i in eligible(rows))


@given(st.lists(st.tuples(candidates, asks), max_size=8), st.sampled_from(NAMES))
def test_the_same_history_gives_the_same_choices(
    history: list[tuple[list[Candidate], Ask]], name: str
) -> None:
    one, other = make_policy(name), make_policy(name)
    for rows, ask in history:
        assert one.choose(ask, rows) == other.choose(ask, rows)


@given(st.integers(1, 8), st.sampled_from(NAMES), st.integers(1, 5))
def test_equal_replicas_take_turns(count: int, name: str, rounds: int) -> None:
    rows = fleet(*[3] * count)
    policy = make_policy(name)
    taken = Counter(policy.choose(UNTIED, rows) for _ in range(count * rounds))
    assert [taken[i] for i in range(count)] == [rounds] * count


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=5), st.sampled_from(["least_inflight", "round_robin"])
)
def test_requests_that_stay_are_spread_by_weight(weights: list[int], name: str) -> None:
    policy, counts = make_policy(name), [0] * len(weights)
    for _ in range(sum(weights) * 10):
        index = policy.choose(UNTIED, fleet(*counts, weights=tuple(map(float, weights))))
        assert index is not None
        counts[index] += 1
    assert all(abs(n - 10 * w) <= 1 for n, w in zip(counts, weights, strict=True))


def test_round_robin_spreads_a_heavy_replica_out() -> None:
    policy = make_policy("round_robin")
    picks = [policy.choose(UNTIED, fleet(0, 0, 0, weights=(5.0, 1.0, 1.0))) for _ in range(7)]
    assert picks == [0, 0, 1, 0, 2, 0, 0]


@pytest.mark.parametrize("name", ["least_inflight", "session", "prefix"])
def test_a_replica_that_has_just_come_gets_a_first_request_and_then_a_tenth(name: str) -> None:
    policy, counts = make_policy(name), [30, 30, 0]
    for _ in range(30):
        rows = fleet(*counts)
        rows[2] = rows[2]._replace(ramp=ramp(0.0, 10.0))
        index = policy.choose(UNTIED, rows)
        assert index is not None
        counts[index] += 1
    assert 1 <= counts[2] <= 5


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 60))
def test_the_ramp_grows_from_a_tenth_to_all(age_s: float, later_s: float, slow_start_s: float) -> None:
    now, then = ramp(age_s, slow_start_s), ramp(age_s + later_s, slow_start_s)
    assert SLOW_START_MIN <= now <= then <= 1
    assert ramp(slow_start_s, slow_start_s) == 1


sessions = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60, unique=True)


@given(sessions, st.integers(2, 9), st.data())
def test_a_replica_that_goes_moves_its_own_sessions_and_no_others(
    keys: list[int], count: int, data: st.DataObject
) -> None:
    rows = fleet(*[0] * count)
    gone = data.draw(st.integers(0, count - 1))
    left = [row if i != gone else row._replace(rotation=Rotation.EJECTED) for i, row in enumerate(rows)]
    policy = Session()
    for key in keys:
        before, after = policy.choose(Ask(key), rows), policy.choose(Ask(key), left)
        assert before == after if before != gone else after != gone


def test_sessions_are_spread_by_weight() -> None:
    rows = fleet(0, 0, 0, weights=(1.0, 1.0, 2.0))
    policy = Session()
    found = Counter(policy.choose(Ask(session_key(f"s{n}")), rows) for n in range(4000))
    assert [round(found[i] / 1000, 1) for i in range(3)] == pytest.approx([1.0, 1.0, 2.0], abs=0.15)


@given(sessions, st.integers(2, 8), st.floats(1, 3))
def test_no_replica_takes_more_than_its_bound(keys: list[int], count: int, factor: float) -> None:
    policy, counts = Session(factor), [0] * count
    for key in [k for k in keys for _ in range(5)]:
        index = policy.choose(Ask(key), fleet(*counts))
        assert index is not None
        counts[index] += 1
        assert counts[index] <= max(FREE_IN_FLIGHT, factor * sum(counts) / count + 1)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_without_a_key_the_tied_policies_choose_as_least_inflight(counts: list[int]) -> None:
    for name in ("session", "prefix"):
        tied, plain = make_policy(name), LeastInflight()
        for _ in range(3):
            assert tied.choose(UNTIED, fleet(*counts)) == plain.choose(UNTIED, fleet(*counts))


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), max_size=30))
def test_the_short_way_to_choose_chooses_the_same(rounds: list[list[int]]) -> None:
    long, short = LeastInflight(), LeastInflight()
    for counts in rounds:
        candidates = [Candidate(count, Rotation.IN) for count in counts]
        assert short.choose_even(counts) == long.choose(UNTIED, candidates)
