from __future__ import annotations

from gpuserved.router.http.body import Body
from gpuserved.router.http.errors import HttpError
from gpuserved.router.poison import BLOCKED_S, REMEMBERED_MAX, Poison


class Memory:
    """A request is known by its body."""

    def __init__(self) -> None:
        self._poison = Poison()

    def __bool__(self) -> bool:
        return bool(self._poison)

    def add(self, text: bytes, deaths: int, now: float) -> None:
        self._poison.remember("/", _body(text), deaths, now)

    def deaths(self, text: bytes, now: float) -> int:
        return self._poison.deaths("/", _body(text), now)

    def blocks(self, text: bytes, now: float) -> bool:
        try:
            self._poison.check("/", _body(text), now)
        except HttpError as error:
            return (error.status, error.final) == (502, True)
        return False


def _body(text: bytes) -> Body:
    body = Body()
    body.append(text)
    return body


def test_three_deaths_block_a_request_for_ten_minutes_whoever_sends_it() -> None:
    blocked = Memory()
    assert not blocked
    blocked.add(b"killer", 3, 100.0)
    blocked.add(b"neighbour", 1, 100.0)
    assert blocked
    assert blocked.blocks(b"killer", 100.0 + BLOCKED_S)
    assert not blocked.blocks(b"neighbour", 101.0)
    assert not blocked.blocks(b"stranger", 101.0)
    assert not blocked.blocks(b"killer", 101.0 + BLOCKED_S)


def test_a_request_that_may_not_be_sent_twice_is_counted_over_the_client_s_own_tries() -> None:
    blocked = Memory()
    for deaths in range(1, 4):
        assert not blocked.blocks(b"large", float(deaths))
        blocked.add(b"large", 1, float(deaths))
    assert blocked.blocks(b"large", 4.0)


def test_memory_is_bounded_and_the_oldest_are_forgotten() -> None:
    blocked = Memory()
    for number in range(REMEMBERED_MAX + 10):
        blocked.add(number.to_bytes(4, "big"), 3, 0.0)
    assert not blocked.blocks((9).to_bytes(4, "big"), 0.0)
    assert blocked.blocks((10).to_bytes(4, "big"), 0.0)


def test_deaths_add_up_within_ten_minutes_of_the_last_and_are_then_forgotten() -> None:
    blocked = Memory()
    blocked.add(b"r", 1, 0.0)
    blocked.add(b"r", 1, 600.0)
    assert blocked.deaths(b"r", 1200.0) == 2
    assert blocked.deaths(b"r", 1200.5) == 0
    assert not blocked, "what is forgotten takes no room"
    assert blocked.deaths(b"stranger", 0.0) == 0


def test_the_one_that_is_forgotten_is_the_one_not_heard_of_for_longest() -> None:
    blocked = Memory()
    for number in range(REMEMBERED_MAX):
        blocked.add(number.to_bytes(4, "big"), 1, 0.0)
    blocked.add((0).to_bytes(4, "big"), 1, 1.0)
    assert blocked.deaths((1).to_bytes(4, "big"), 1.0) == 1, "there is room for all"
    blocked.add(b"new", 1, 1.0)
    assert [blocked.deaths(n.to_bytes(4, "big"), 1.0) for n in range(3)] == [2, 0, 1]
