"""The soak's judge lets a flat, noisy run pass and no leak."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.soak.judge import (
    FLEET_NOISE_BYTES,
    Point,
    Rest,
    Sample,
    complaints,
    fleet_complaints,
    growth_per_s,
    settled,
)

REST = Rest(
    fds_before=20,
    fds=20,
    connections=0,
    in_flight=0,
    queued=0,
    busy_replicas={},
    busy_engines={},
    pid_before=7,
    pid=7,
)
GOOD = {"whole": 1000, "told": 5, "left": 300}


def run(
    seconds: int, *, leak_bytes_per_s: float = 0, leak_fds_per_s: float = 0, seed: int = 1
) -> list[Sample]:
    """30 MB with noise, 600 descriptors with noise, a warm-up of 10 MB, and a leak."""
    rng = random.Random(seed)
    return [
        Sample(
            at_s=at,
            pss_bytes=int(30e6 - 10e6 * max(0.0, 1 - at / 30) + leak_bytes_per_s * at + rng.gauss(0, 3e5)),
            fds=int(600 + leak_fds_per_s * at + rng.gauss(0, 20)),
            connections=256, in_flight=200, requests_total=at * 30,
        )
        for at in range(0, seconds, 2)
    ]  # fmt: skip


@pytest.mark.parametrize("seconds", [120, 1200])
@pytest.mark.parametrize("seed", range(10))
def test_a_flat_run_passes(seconds: int, seed: int) -> None:
    assert complaints(run(seconds, seed=seed), GOOD, 4, 4, REST) == []


@pytest.mark.parametrize(("seconds", "leak"), [(120, 30_000), (1200, 3_000)], ids=["2 minutes", "20 minutes"])
def test_a_leak_of_memory_is_seen(seconds: int, leak: float) -> None:
    """1 KB a request at 30 requests a second in two minutes; 100 bytes a request in twenty."""
    (said,) = complaints(run(seconds, leak_bytes_per_s=leak), GOOD, 4, 4, REST)
    assert said.startswith("memory grew by")


def test_a_leak_of_descriptors_is_seen() -> None:
    assert any("file descriptors" in one for one in complaints(run(120, leak_fds_per_s=1), GOOD, 4, 4, REST))


def test_one_spike_is_no_slope() -> None:
    points = [(float(at), 5.0 if at != 50 else 500.0) for at in range(100)]
    assert growth_per_s(points) == 0
    assert settled(run(120))[0].at_s >= 39


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (replace(REST, connections=1), "1 connections after"),
        (replace(REST, in_flight=2), "2 requests in flight after"),
        (replace(REST, queued=3), "3 requests queued after"),
        (replace(REST, fds=21), "1 file descriptors more"),
        (replace(REST, busy_replicas={"a-0": 4}), "a-0: 4 in flight"),
        (replace(REST, busy_engines={"a-0": 5}), "a-0: 5 in the engine"),
        (replace(REST, pid=8), "the router was restarted"),
    ],
)
def test_what_is_left_is_named(rest: Rest, said: str) -> None:
    (found,) = complaints(run(120), GOOD, 4, 4, rest)
    assert said in found


def test_lost_requests_and_replicas_that_stay_away_are_named() -> None:
    found = complaints(run(120), {**GOOD, "lost": 1, "refused": 2}, 4, 3, REST)
    assert found == [
        "1 requests were lost",
        "2 requests were refused",
        "1 of 4 killed replicas did not come back",
    ]
    assert "no replica was killed" in complaints(run(120), GOOD, 0, 0, REST)
    assert "not one request was answered" in complaints(run(120), {}, 1, 1, REST)


def fleet(
    seconds: int, *, leak_bytes_per_s: float = 0, leak_fds_per_s: float = 0, role: str = "supervisor"
) -> list[Point]:
    """Three roles with noise, and a leak in one; every four minutes its process is a new one."""
    rng = random.Random(1)

    def memory(of: str, at: int) -> int:
        leak = leak_bytes_per_s * at if of == role else 0.0
        return int(40e6 - 4e6 * max(0.0, 1 - (at % 240) / 30) + leak + rng.gauss(0, 3e5))

    return [
        Point(
            at_s=at, pss_bytes={of: memory(of, at) for of in FLEET_NOISE_BYTES},
            fds={of: int(100 + (leak_fds_per_s * at if of == role else 0) + rng.gauss(0, 5)) for of in ("supervisor", "routers")},
            routers=1 if at % 300 == 0 else 2,
        )
        for at in range(0, seconds, 5)
    ]  # fmt: skip


@pytest.mark.parametrize("seconds", [120, 1800])
def test_a_fleet_that_is_flat_passes(seconds: int) -> None:
    assert fleet_complaints(fleet(seconds)) == []


@pytest.mark.parametrize("role", list(FLEET_NOISE_BYTES))
def test_a_fleet_that_leaks_does_not(role: str) -> None:
    (said,) = fleet_complaints(fleet(1800, leak_bytes_per_s=4000, role=role))
    assert f"memory of {role} grew by" in said
    if role in {"supervisor", "routers"}:
        (said,) = fleet_complaints(fleet(1800, leak_fds_per_s=0.1, role=role))
        assert f"file descriptors of {role}" in said


def test_a_fleet_that_nobody_saw_is_not_passed() -> None:
    assert fleet_complaints([]) != []
