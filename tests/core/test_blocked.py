from __future__ import annotations

from gpuserved.core.blocked import BLOCKED_S, REMEMBERED_MAX, Blocked


def test_three_deaths_block_a_request_for_ten_minutes_whoever_sends_it() -> None:
    blocked = Blocked()
    assert not blocked
    blocked.add(b"killer", 3, 100.0)
    blocked.add(b"neighbour", 1, 100.0)
    assert blocked
    assert blocked.blocks(b"killer", 100.0 + BLOCKED_S)
    assert not blocked.blocks(b"neighbour", 101.0)
    assert not blocked.blocks(b"stranger", 101.0)
    assert not blocked.blocks(b"killer", 101.0 + BLOCKED_S)


def test_a_request_that_may_not_be_sent_twice_is_counted_over_the_client_s_own_tries() -> None:
    blocked = Blocked()
    for deaths in range(1, 4):
        assert not blocked.blocks(b"large", float(deaths))
        blocked.add(b"large", 1, float(deaths))
    assert blocked.blocks(b"large", 4.0)


def test_memory_is_bounded_and_the_oldest_are_forgotten() -> None:
    blocked = Blocked()
    for number in range(REMEMBERED_MAX + 10):
        blocked.add(number.to_bytes(4, "big"), 3, 0.0)
    assert not blocked.blocks((9).to_bytes(4, "big"), 0.0)
    assert blocked.blocks((10).to_bytes(4, "big"), 0.0)
