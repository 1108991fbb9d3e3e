"""Replicas that a smaller scale or an `apply` lets go: they drain to the deadline whoever watches, and can be had back."""

from __future__ import annotations

import json
import time

import pytest
from tests.e2e.box import Box, Json, kill, until
from tests.e2e.clients import Stream, Streams, open_streams
from tests.e2e.texts import sim

from gpuserved.api.client import ControlClient
from gpuserved.api.types import ScaleRequest

SERVED = "lean"
LAST = "lean-1"
SHORT_TOKENS = 200
"""Four seconds at 20 ms a token."""
ENDLESS_TOKENS = 6000
"""Two minutes: longer than anything here takes, on any machine. Their clients leave in the end."""
DRAIN_S = 4.0


def profile(drain_s: float = 60, grace_s: float = 1, **flags: bool) -> str:
    tables = {"health": {"interval_s": 0.3}, "limits": {"drain_s": drain_s, "term_grace_s": grace_s}}
    return sim(SERVED, flags={"load_s": 0.2, **flags}, tables=tables)


def rows(box: Box) -> dict[str, Json]:
    return {row["id"]: row for row in box.look()["replicas"]}


def scale(box: Box, replicas: int) -> None:
    """`gpuserve scale`, without the time that a command takes to start."""
    ControlClient(box.roots.control_socket).scale(ScaleRequest(profile="lean", replicas=replicas))


def streams_on_both(box: Box, tokens: int) -> Streams:
    opened = open_streams(box.endpoint, SERVED, 2, tokens)
    opened.wait_begun()
    assert {stream.replica for stream in opened.streams} == {"lean-0", LAST}
    return opened


def not_whole(streams: Streams) -> list[Stream]:
    """Once all have ended."""
    return [stream for stream in streams.join() if not stream.whole]


def next_daemon(box: Box) -> float:
    """kill -9 the daemon and start another; when it answered."""
    kill(box.look()["supervisor"]["pid"])
    box.ok("up", "--wait", "0")
    return time.monotonic()


def deadline(box: Box) -> float | None:
    """Of the drain, as it is on disk."""
    _head, body = (box.roots.state / "fleet.json").read_text("utf-8").splitlines()
    records = json.loads(body)["replicas"]
    found: list[float | None] = [each["drains_until"] for each in records if each["id"] == LAST]
    return found[0] if found else None


def last_seen_draining(box: Box) -> float:
    """Wait until the drain is over; when the last question was asked to which it still went on."""
    last = time.monotonic()

    def over() -> bool:
        nonlocal last
        asked_at = time.monotonic()
        goes_on = bool(rows(box).get(LAST, {}).get("state") == "DRAINING")
        last = asked_at if goes_on else last
        return not goes_on

    until(over, "the drain is over", 60)
    return last


def test_a_replica_that_was_let_go_is_had_back(box: Box) -> None:
    """With its process while it drains; as a new one when it has been told to end."""
    box.up({"lean": profile(grace_s=4, ignore_sigterm=True)})
    before = rows(box)[LAST]
    streams = streams_on_both(box, ENDLESS_TOKENS)
    scale(box, 1)
    box.wait_state(LAST, "DRAINING", leaving=True)
    scale(box, 2)
    box.wait_state(LAST, "READY", pid=before["pid"], generation=before["generation"], leaving=False)
    scale(box, 1)
    box.wait_state(LAST, "DRAINING")
    assert box.ok("apply", str(box.profiles / "lean.toml")) == "resume lean-1  (it was on its way out)\n"
    box.wait_state(LAST, "READY", pid=before["pid"], generation=before["generation"])
    streams.flow()
    streams.leave()
    scale(box, 1)
    box.wait_state(LAST, "STOPPING")
    scale(box, 2)
    assert box.wait_restarted(before, 30)["restarts"] == 0


@pytest.mark.fault(26)
def test_the_next_daemon_goes_on_draining(box: Box) -> None:
    """Killed in mid-drain of replicas whose profile is wanted no more."""
    box.up({"lean": profile()})
    before = rows(box)
    streams = streams_on_both(box, ENDLESS_TOKENS)
    box.ok("apply", "--prune", "--no-wait", box.write("other", sim("other", 1, flags={"load_s": 0.2})))
    next_daemon(box)
    left = {name: row for name, row in rows(box).items() if name in before}
    assert {name: row["pid"] for name, row in left.items()} == {n: r["pid"] for n, r in before.items()}
    assert {row["state"] for row in left.values()} == {"DRAINING"}
    streams.flow()
    assert set(rows(box)) == {*before, "other-0"}, "who still serves somebody stays"
    streams.leave()
    until(lambda: list(rows(box)) == ["other-0"], "they left once nothing was in flight", 60)


@pytest.mark.fault(26)
def test_the_next_daemon_ends_the_drain_when_the_first_one_would_have(box: Box) -> None:
    box.up({"lean": profile(DRAIN_S)})
    streams = streams_on_both(box, ENDLESS_TOKENS)
    scale(box, 1)
    until_s = until(lambda: deadline(box), "the drain is on disk", 60)
    until(lambda: time.monotonic() > until_s - DRAIN_S / 2, "half the drain is over", 10)
    adopted_at = next_daemon(box)
    drained_at = last_seen_draining(box)
    # Half a drain later, had it begun anew.
    assert drained_at < max(until_s, adopted_at) + DRAIN_S / 4, "it began anew"
    assert time.monotonic() > until_s - 0.5
    until(lambda: LAST not in rows(box), "it is gone", 60)
    cut = next(stream for stream in streams.streams if stream.replica == LAST)
    until(lambda: cut.error, "what it cut was told", 60)
    assert cut.told
    box.ok("down", "--yes", "--no-drain")
