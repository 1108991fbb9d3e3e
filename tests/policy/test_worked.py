"""Choices worked out by hand from the formulas that the policies' documents give."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gpuserved.core.balance import Rotation
from gpuserved.core.policy.base import UNTIED, Ask, Candidate, Ties, eligible, load, ramp
from gpuserved.core.policy.least_inflight import LeastInflight
from gpuserved.core.policy.make import make_policy
from gpuserved.core.policy.mirror import Mirror
from gpuserved.core.policy.prefill import PACE_TOKENS_PER_S, Prefill
from gpuserved.core.policy.prefix import Prefix
from gpuserved.core.policy.prefix_key import PrefixKey
from gpuserved.core.policy.round_robin import RoundRobin
from gpuserved.core.policy.session import Session, rank, session_key

IN, PROBATION, EJECTED = Rotation.IN, Rotation.PROBATION, Rotation.EJECTED


def text(name: str, size_bytes: int) -> PrefixKey:
    """A prompt in one block."""
    return PrefixKey((name.encode(),), (size_bytes,), size_bytes)


def replica(in_flight: int = 0, holds: PrefixKey | None = None, **more: Any) -> Candidate:
    mirror = more.pop("mirror", None) or Mirror()
    if holds is not None:
        mirror.sent(holds)
    return Candidate(in_flight, more.pop("rotation", IN), mirror=mirror, **more)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([Candidate(9, IN), Candidate(0, PROBATION)], [0, 1]),
        ([Candidate(9, IN), Candidate(1, PROBATION)], [0]),
        ([Candidate(1, PROBATION), Candidate(0, EJECTED)], [0]),
        ([Candidate(0, EJECTED), Candidate(0, EJECTED, doubtful=True)], [1]),
        ([Candidate(0, IN), Candidate(0, EJECTED, doubtful=True)], [0]),
        ([Candidate(0, IN, avoid=True), Candidate(9, IN)], [1]),
        ([Candidate(0, IN, avoid=True), Candidate(9, IN, avoid=True)], [0, 1]),
        ([Candidate(0, IN, avoid=True), Candidate(0, EJECTED, doubtful=True)], [0]),
        ([Candidate(0, EJECTED, avoid=True, doubtful=True)], [0]),
        ([], []),
    ],
)
def test_who_may_take_a_request(rows: list[Candidate], expected: list[int]) -> None:
    assert eligible(rows) == expected


def test_what_one_more_request_weighs() -> None:
    assert load(Candidate(3, IN)) == 4
    assert load(Candidate(3, IN, weight=2.0)) == 2
    assert load(Candidate(3, IN, ramp=0.5)) == 7
    assert [ramp(age, 10.0) for age in (0.0, 1.0, 2.0, 5.0, 10.0, 99.0)] == [0.1, 0.1, 0.2, 0.5, 1.0, 1.0]
    assert ramp(0.0, 0.0) == 1.0


def test_each_name_is_its_policy() -> None:
    made = {
        name: make_policy(name) for name in ("prefix", "session", "round_robin", "least_inflight", "novel")
    }
    assert [type(one) for one in made.values()] == [Prefix, Session, RoundRobin, LeastInflight, LeastInflight]
    assert [one.ties for one in made.values()] == [Ties.PREFIX, Ties.SESSION, Ties.NONE, Ties.NONE, Ties.NONE]
    assert all(one.choose(UNTIED, [Candidate(0, EJECTED)]) is None for one in made.values())


def test_turns_go_on_behind_the_last_one() -> None:
    policy = LeastInflight()
    rows = [Candidate(n, IN) for n in (1, 0, 0, 0)]
    assert [policy.choose(UNTIED, rows) for _ in range(4)] == [1, 2, 3, 1]
    assert [policy.choose_even([1, 0, 0]) for _ in range(4)] == [2, 1, 2, 1]


def test_round_robin_leaves_out_who_is_not_ready_and_owes_nothing_for_it() -> None:
    policy = RoundRobin()
    rows = [Candidate(0, IN, identity=n) for n in range(3)]
    assert [policy.choose(UNTIED, rows) for _ in range(3)] == [0, 1, 2]
    without = [rows[0], rows[1]._replace(rotation=EJECTED), rows[2]]
    assert [policy.choose(UNTIED, without) for _ in range(4)] == [0, 2, 0, 2]
    assert [policy.choose(UNTIED, rows) for _ in range(3)] == [0, 1, 2]
    slow = [rows[0]._replace(ramp=0.25), rows[1]]
    fresh = RoundRobin()
    assert [fresh.choose(UNTIED, slow) for _ in range(5)] == [1, 1, 0, 1, 1]


def test_a_session_s_rank_is_weighted_rendezvous() -> None:
    assert session_key("a") == session_key("a") != session_key("b")
    assert 0 <= session_key("any \ud800 name") < 2**64
    ranks = [rank(n, session_key("r"), 1.0) for n in range(4000)]
    shares = [math.exp(-1 / one) for one in ranks]  # back to the uniform draw
    assert all(0 < one < 1 for one in shares)
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.02)
    assert sum(1 for one in shares if one < 0.1) / len(shares) == pytest.approx(0.1, abs=0.02)
    assert rank(7, 8, 2.5) == pytest.approx(2.5 * rank(7, 8, 1.0))
    assert rank(7, 8, 1.0) != rank(7, 9, 1.0)


def crowd(in_flight: list[int], **more: Any) -> list[Candidate]:
    return [Candidate(n, IN, identity=session_key(f"r{i}"), **more) for i, n in enumerate(in_flight)]


def test_a_session_goes_elsewhere_exactly_when_its_replica_is_at_its_bound() -> None:
    policy = Session(1.25)
    ask = Ask(session_key("s"))
    home = policy.choose(ask, crowd([0, 0]))
    assert home is not None

    def chosen(mine: int, other: int, **more: Any) -> bool:
        counts = [mine, other] if home == 0 else [other, mine]
        return policy.choose(ask, crowd(counts, **more)) == home

    # Bound: ceil(1.25 x (1 + all in flight) / 2), and four at least.
    assert chosen(3, 0), "four have room wherever they are"
    assert not chosen(4, 0)
    assert chosen(12, 8), "ceil(1.25 x 21 / 2) is fourteen"
    assert chosen(13, 8)
    assert not chosen(15, 8), "ceil(1.25 x 24 / 2) is fifteen"
    assert chosen(2, 2, weight=0.01), "the bound is by weight among equals"
    # Its slow start: ceil(1.25 x 21 / 2 x 0.1) is two.
    assert chosen(1, 19, ramp=0.1)
    assert not chosen(2, 0, ramp=0.1)


def test_where_all_are_at_their_bound_a_session_stays() -> None:
    ask = Ask(session_key("s"))
    rows = crowd([0, 0, 0])
    home = Session().choose(ask, rows)
    full = [row._replace(in_flight=50, ramp=0.1) for row in rows]
    assert Session(0.01).choose(ask, full) == home


def test_the_replica_with_the_prompt_until_its_queue_is_dearer() -> None:
    """4000 tokens cached against a price of 320 for each request in flight: the thirteenth goes elsewhere."""
    key = text("p", 16_000)
    for busy in range(0, 24, 2):
        rows = [replica(busy, key), replica(0)]
        mean = (busy + 2) / 2
        price = min(320.0, 3200.0 / mean)
        expected = 0 if price * (busy + 1) < 4000 + price else 1
        assert Prefix().choose(Ask(prefix=key), rows) == expected, busy


def test_prompts_that_wait_count_as_tokens() -> None:
    key = text("p", 16_000)
    holds = replica(0, key)
    assert Prefix().choose(Ask(prefix=key), [holds._replace(queued_tokens=3999.0), replica(0)]) == 0
    assert Prefix().choose(Ask(prefix=key), [holds._replace(queued_tokens=4001.0), replica(0)]) == 1
    weak = holds._replace(queued_tokens=1500.0, weight=0.5)  # 3000, and twice the price
    assert Prefix().choose(Ask(prefix=key), [weak, replica(0)]) == 0
    assert Prefix().choose(Ask(prefix=key), [weak._replace(queued_tokens=2000.0), replica(0)]) == 1


def test_what_is_pushed_out_of_a_full_cache_counts_too() -> None:
    key = text("new", 8000)
    full, roomy = Mirror(4000), Mirror(8000)
    for mirror in (full, roomy):
        mirror.sent(text("old", 12_000))
    # 16,000 bytes of room and 12,000 in use: half of the new prompt pushes out half of it again.
    rows = [replica(0, mirror=full), replica(0, mirror=roomy)]
    assert Prefix().choose(Ask(prefix=key), rows) == 1
    assert Prefix().choose(Ask(prefix=key), [rows[0], rows[1]._replace(queued_tokens=999.0)]) == 1
    assert Prefix().choose(Ask(prefix=key), [rows[0], rows[1]._replace(queued_tokens=1001.0)]) == 0


def test_without_anything_to_win_the_fewest_in_flight_get_it() -> None:
    """32000 / mean load for each request: at a mean of 11 one more weighs 2909 tokens."""
    key = text("p", 4000)
    rows = [replica(10), replica(10), replica(9)]
    assert Prefix().choose(Ask(prefix=key), rows) == 2
    near = [replica(10), replica(9)._replace(queued_tokens=3000.0)]
    assert Prefix().choose(Ask(prefix=key), near) == 1
    far = [replica(10), replica(9)._replace(queued_tokens=3100.0)]
    assert Prefix().choose(Ask(prefix=key), far) == 0
    even, policy = [replica(1), replica(1), replica(1)], Prefix()
    assert [policy.choose(Ask(prefix=key), even) for _ in range(4)] == [0, 1, 2, 0]


def test_a_replica_without_a_mirror_makes_the_choice_untied() -> None:
    key = text("p", 16_000)
    rows = [replica(5, key), Candidate(0, IN)]
    assert Prefix().choose(Ask(prefix=key), rows) == 1


def test_bytes_become_tokens_by_what_the_replicas_show_on_average() -> None:
    key = text("p", 12_000)
    rows = [replica(0, key), replica(0)]
    for row, ratio in zip(rows, (2.0, 4.0), strict=True):
        assert row.mirror is not None
        row.mirror.bytes_per_token = ratio
    # 12,000 bytes at three a token are 4000 tokens.
    assert Prefix().choose(Ask(prefix=key), [rows[0]._replace(queued_tokens=3990.0), rows[1]]) == 0
    assert Prefix().choose(Ask(prefix=key), [rows[0]._replace(queued_tokens=4010.0), rows[1]]) == 1


def test_the_pace_moves_an_eighth_of_the_way_and_stays_in_its_bounds() -> None:
    queue = Prefill()
    assert queue.pace == PACE_TOKENS_PER_S
    queue.begun(queue.sent(256, 0.0), 1.0, streams=True)
    assert queue.pace == pytest.approx(10_000 + (256 - 10_000) / 8)
    for size, after_s, streams in [(255, 1.0, True), (9999, 0.0, True), (9999, 1.0, False)]:
        other = Prefill()
        other.begun(other.sent(size, 0.0), after_s, streams=streams)
        assert other.pace == PACE_TOKENS_PER_S
    fast, slow = Prefill(), Prefill()
    for _ in range(300):
        fast.begun(fast.sent(1e9, 0.0), 1e-3, streams=True)
        slow.begun(slow.sent(300, 0.0), 1e6, streams=True)
    assert fast.pace == pytest.approx(1e6, rel=1e-3)
    assert slow.pace == pytest.approx(50, rel=1e-3)


def test_a_prompt_waits_for_those_ahead_of_it() -> None:
    queue = Prefill()
    queue.pace = 100.0
    first, second = queue.sent(100, 0.0), queue.sent(300, 0.0)
    assert (first.ahead, second.ahead) == (100, 400)
    assert (first.until, second.until) == (3.0, 12.0)
    assert [queue.tokens(at) for at in (2.9, 3.0, 11.9, 12.0)] == [400, 300, 300, 0]
    queue.begun(first, 13.0, streams=False)
    assert queue.tokens(13.0) == 0
    queue.noted(50, sent_at=13.0, now=13.2)
    assert [queue.tokens(at) for at in (13.2, 13.49)] == [50, 50]
    third = queue.sent(100, 13.3)
    assert third.ahead == 150
    assert queue.tokens(13.5) == 100, "nobody will say when another router's has begun"
