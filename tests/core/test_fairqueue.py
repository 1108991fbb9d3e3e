from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.fairqueue import FairQueue

Item = tuple[str, int]
tenants = st.sampled_from("abc")


def _filled(arrivals: list[str]) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for number, tenant in enumerate(arrivals):
        queue.push(tenant, (tenant, number))
    return queue


def _drained(queue: FairQueue[Item]) -> list[Item]:
    return [queue.pop() for _ in range(len(queue))]


@given(st.lists(tenants, max_size=40))
def test_everybody_in_turn_and_first_come_first_served_within(arrivals: list[str]) -> None:
    out = _drained(_filled(arrivals))
    assert sorted(out, key=lambda item: item[1]) == [(t, n) for n, t in enumerate(arrivals)]
    left = Counter(arrivals)
    served: Counter[str] = Counter()
    for tenant in "abc":
        numbers = [n for t, n in out if t == tenant]
        assert numbers == sorted(numbers)
    for tenant, _ in out:
        served[tenant] += 1
        waiting = [t for t in left if left[t] > served[t]]
        # Whoever still waits has had as many turns as anybody else, give or take the present round.
        assert all(served[t] >= served[tenant] - 1 for t in waiting)


@given(st.lists(tenants, min_size=1, max_size=40), st.data())
def test_removed_ones_are_gone_and_the_others_stay(arrivals: list[str], data: st.DataObject) -> None:
    queue = _filled(arrivals)
    gone = data.draw(st.sets(st.integers(0, len(arrivals) - 1)))
    for number in gone:
        assert queue.remove(arrivals[number], (arrivals[number], number))
        assert not queue.remove(arrivals[number], (arrivals[number], number))
    assert {n for _, n in _drained(queue)} == set(range(len(arrivals))) - gone
    assert queue.head() is None


def test_replays_come_first_and_can_leave() -> None:
    queue = _filled(["a", "b"])
    queue.push_front(("c", 9))
    queue.push_front(("c", 8))
    assert queue.head() == ("c", 8)
    assert queue.remove("c", ("c", 9))
    assert _drained(queue) == [("c", 8), ("a", 0), ("b", 1)]


@given(st.lists(tenants, min_size=1, max_size=60), st.integers(1, 8))
def test_a_full_queue_takes_from_whoever_holds_most(arrivals: list[str], bound: int) -> None:
    queue: FairQueue[Item] = FairQueue()
    held: Counter[str] = Counter()
    for number, tenant in enumerate(arrivals):
        if len(queue) >= bound:
            displaced = queue.displace(tenant)
            if displaced is None:
                assert held[tenant] + 1 >= max(held.values())
                continue
            assert held[displaced[0]] == max(held.values()) > held[tenant] + 1
            held[displaced[0]] -= 1
        queue.push(tenant, (tenant, number))
        held[tenant] += 1
        assert len(queue) <= bound
    assert Counter(t for t, _ in _drained(queue)) == +held


def test_one_tenant_s_flood_leaves_room_for_another() -> None:
    queue = _filled(["a"] * 8)
    for number in range(4):
        assert queue.displace("b") == ("a", 7 - number)
        queue.push("b", ("b", 100 + number))
    assert queue.displace("b") is None
    assert [t for t, _ in _drained(queue)] == ["a", "b"] * 4


def test_the_turn_goes_round_as_items_come_and_go() -> None:
    queue = _filled(["a", "a", "b"])
    assert [len(queue), queue.head(), queue.pop(), queue.pop(), len(queue)] == [
        3,
        ("a", 0),
        ("a", 0),
        ("b", 2),
        1,
    ]
    queue.push("b", ("b", 3))
    assert _drained(queue) == [("a", 1), ("b", 3)]
    with pytest.raises(IndexError, match="nobody waits"):
        queue.pop()
    assert queue.head() is None
    assert queue.displace("a") is None


def test_who_is_not_in_the_queue_cannot_leave_it() -> None:
    queue = _filled(["a", "b"])
    queue.push_front(("a", 9))
    assert queue.remove("a", ("a", 5)) is False
    assert not queue.remove("z", ("z", 5))
    assert len(queue) == 3
    assert queue.remove("a", ("a", 0))
    assert len(queue) == 2
    assert queue.remove("a", ("a", 9)), "in front, where its tenant has nothing else"
    assert (len(queue), _drained(queue)) == (1, [("b", 1)])


@pytest.mark.parametrize(
    ("held", "tenant", "expected"),
    [("aab", "b", None), ("aaab", "b", ("a", 2)), ("aa", "c", ("a", 1)), ("a", "c", None), ("aaab", "a", None), ("bbaaa", "c", ("a", 4))],
)  # fmt: skip
def test_who_makes_room(held: str, tenant: str, expected: Item | None) -> None:
    queue = _filled(list(held))
    assert queue.displace(tenant) == expected
    assert len(queue) == len(held) - (expected is not None)
