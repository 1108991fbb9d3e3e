"""Where sessions go, by the figures of the algorithms that the policy is made of."""

from __future__ import annotations

import math

import pytest

from gpuserved.core.balance import Rotation
from gpuserved.core.policy.base import Ask, Candidate
from gpuserved.core.policy.session import Session, rank, session_key

SPLITMIX64 = (
    0xE220A8397B1DCDAF,
    0x6E789E6AA1B965F4,
    0x06C45D188009454F,
    0xF88BB8A8724C81EC,
    0x1B39896A51A8749B,
)
"""The first outputs for the seed 0, as every implementation of it has them (prng.di.unimi.it/splitmix64.c)."""


@pytest.mark.parametrize("nth", range(1, 6))
def test_ranks_are_drawn_by_splitmix64(nth: int) -> None:
    """Routers of two releases run side by side during an upgrade, and must send a session to the same replica."""
    expected = -1 / math.log(SPLITMIX64[nth - 1] / 2**64)
    for session, identity in ((nth, 0), (0, nth), (nth ^ 12345, 12345)):
        assert rank(session, identity, 1.0) == pytest.approx(expected, rel=1e-13)
    assert rank(nth, 0, 3.0) == pytest.approx(3 * expected, rel=1e-13)


def test_the_extremes_of_a_draw_are_ranks_as_well() -> None:
    """A draw of nothing but zeros, and one of nothing but ones: neither is a logarithm of 0, nor a division by one."""
    lowest, highest = rank(7, 7, 1.0), rank(0x755449271EF5A6C0, 0, 1.0)
    assert lowest == pytest.approx(1 / math.log(2**53))
    assert highest == pytest.approx(2**53, rel=1e-3)
    assert all(lowest < rank(nth, 0, 1.0) < highest for nth in range(1, 1000))


def test_a_name_has_the_same_key_in_every_process() -> None:
    """The first 64 bits of blake2b over UTF-8; what is no text has a key all the same."""
    assert session_key("llama-0") == 0x6F90310F49CD6577
    assert session_key("naïve") != session_key("na?ve") == session_key("na\ud800ve")


def test_a_replica_takes_a_quarter_more_than_the_mean_where_nobody_says_otherwise() -> None:
    """1.25 x 20 / 2 is 12.5."""
    rows = [Candidate(0, Rotation.IN, identity=session_key(f"r-{n}")) for n in range(2)]
    session = next(n for n in range(100) if Session().choose(Ask(n), rows) == 0)
    assert (
        Session().choose(Ask(session), [rows[0]._replace(in_flight=12), rows[1]._replace(in_flight=7)]) == 0
    )
    assert (
        Session().choose(Ask(session), [rows[0]._replace(in_flight=13), rows[1]._replace(in_flight=6)]) == 1
    )


def weighted(heavy: int, light: int, ramp: float = 1.0) -> list[Candidate]:
    """Three times as much for the first one, which may have just come."""
    return [
        Candidate(heavy, Rotation.IN, weight=3.0, identity=session_key("heavy"), ramp=ramp),
        Candidate(light, Rotation.IN, weight=1.0, identity=session_key("light")),
    ]


def test_a_bound_is_by_weight() -> None:
    """Of 39 in flight and one more, 1.25 x 40 / 4 x 3 is 37.5: the heavy one takes 38. The light one takes 13."""
    session = next(n for n in range(100) if Session().choose(Ask(n), weighted(0, 0)) == 0)
    assert Session().choose(Ask(session), weighted(37, 2)) == 0
    assert Session().choose(Ask(session), weighted(38, 1)) == 1
    other = next(n for n in range(100) if Session().choose(Ask(n), weighted(0, 0)) == 1)
    assert Session().choose(Ask(other), weighted(27, 12)) == 1
    assert Session().choose(Ask(other), weighted(26, 13)) == 0


def test_a_bound_of_a_slow_start_is_by_weight_and_ramp() -> None:
    """1.25 x 7 / 4 x 3 x 0.5 is 3.3: it takes four."""
    session = next(n for n in range(100) if Session().choose(Ask(n), weighted(0, 0)) == 0)
    assert Session().choose(Ask(session), weighted(3, 3, ramp=0.5)) == 0
    assert Session().choose(Ask(session), weighted(4, 2, ramp=0.5)) == 1
