"""A changed profile reaches its replicas one by one, under load and with every GPU full; a bad change is turned back."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.box import Box, Json, kill, until
from tests.e2e.clients import PlainLoad, Streams, open_streams
from tests.e2e.texts import Scalar, toml

REPLICAS = 3
SERVED = "roll"
LONG_TOKENS = 200
"""Four seconds at 20 ms a token: far beyond the `drain_s` below, which a rolling change does not go by."""
ENDLESS_TOKENS = 6000
"""Two minutes: the first replica drains until their clients leave."""


def profile(**flags: Scalar) -> str:
    """Three replicas on three simulated GPUs: there is no room for a fourth."""
    own = {"step_ms": 20, "load_s": 0.3, "gpus": REPLICAS, "gpu_memory_gib": 80} | flags
    return toml(
        {"sim": own, "limits": {"drain_s": 0.5}, "restart": {"backoff_s": 0.2}, "health": {"interval_s": 0.3}},
        model="sim/tiny", served_name=SERVED, engine="sim", replicas=REPLICAS, max_model_len=8192,
    )  # fmt: skip


@dataclass
class CapacityWatch:
    """The lowest number of READY replicas while a change runs."""

    box: Box
    lowest: int = REPLICAS
    _ending: threading.Event = field(default_factory=threading.Event)

    def _run(self) -> None:
        while not self._ending.wait(0.02):
            # A daemon that is killed on purpose is away for a moment.
            with contextlib.suppress(OSError):
                rows = self.box.look()["replicas"]
                self.lowest = min(self.lowest, sum(row["state"] == "READY" for row in rows))

    @contextlib.contextmanager
    def watching(self) -> Iterator[CapacityWatch]:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            thread.join(10)


def rows(box: Box) -> dict[str, Json]:
    return {row["id"]: row for row in box.look()["replicas"]}


def roll(box: Box) -> Json:
    found: Json = box.look()["rollouts"][0]
    return found


def ended(box: Box) -> Json | None:
    found = roll(box)
    return found if found["outcome"] is not None else None


def streams_on_all(box: Box, tokens: int = LONG_TOKENS) -> Streams:
    """Streams that every replica has some of, begun."""
    opened = open_streams(box.endpoint, SERVED, 2 * REPLICAS, tokens)
    opened.wait_begun()
    assert {stream.replica for stream in opened.streams} == {f"roll-{n}" for n in range(REPLICAS)}
    return opened


def all_whole(streams: Streams) -> None:
    assert [stream for stream in streams.join() if not stream.whole] == []


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text("utf-8").replace("\0", " ")


def steps_ms(box: Box) -> dict[str, str]:
    """What each replica's process really runs with."""
    found = {}
    for name, row in rows(box).items():
        words = command_line(row["pid"]).split()
        found[name] = next(
            w.partition("=")[2] or words[n + 1] for n, w in enumerate(words) if w.startswith("--step-ms")
        )
    return found


def test_a_changed_profile_reaches_replicas_one_by_one_under_load(box: Box) -> None:
    box.up({"roll": profile()})
    before = rows(box)
    with PlainLoad(box.endpoint, SERVED) as load, CapacityWatch(box).watching() as capacity:
        streams = streams_on_all(box)
        done = box.run("apply", box.write("roll", profile(step_ms=19)), timeout_s=120)
        assert done.returncode == 0, done.stderr
        all_whole(streams)
        load.reach(10)
    assert capacity.lowest == REPLICAS - 1
    assert "replacing" not in done.stdout
    assert "roll: rolling change, 0 of 3 replaced, now roll-0" in done.stderr
    assert "roll: rolling change done" in done.stderr
    after = rows(box)
    assert set(steps_ms(box).values()) == {"19"}
    assert all(after[name]["generation"] == row["generation"] + 1 for name, row in before.items())
    assert all(row["restarts"] == 0 for row in after.values())
    assert "nothing to change" in box.ok("apply", str(box.profiles / "roll.toml"))


def test_a_failed_canary_turns_the_change_back(box: Box) -> None:
    """The second replica is healthy and serves no token; the first had been replaced already."""
    box.up({"roll": profile()})
    faults = box.top / "faults.json"
    faults.write_text(json.dumps({"roll-1": {"garbage-response": "not-http"}}), "utf-8")
    with PlainLoad(box.endpoint, SERVED) as load, CapacityWatch(box).watching() as capacity:
        streams = streams_on_all(box)
        bad = box.write("roll", profile(step_ms=19, faults_file=str(faults)))
        done = box.run("apply", bad, timeout_s=120)
        all_whole(streams)
        load.reach(10)
    assert done.returncode == 1
    assert "rolled back to what ran before: roll-1: canary: /v1/completions failed" in done.stderr
    assert capacity.lowest == REPLICAS - 1
    assert set(steps_ms(box).values()) == {"20"}
    assert roll(box)["outcome"] == "rolled_back"
    assert "rolled back" in box.ok("status")
    # What is wanted is what ran before: applying that again changes nothing.
    assert "nothing to change" in box.ok("apply", box.write("roll", profile()))
    assert rows(box)["roll-2"]["generation"] == 1, "the change never came to it"


def test_a_second_apply_takes_the_place_of_the_first(box: Box) -> None:
    box.up({"roll": profile()})
    with PlainLoad(box.endpoint, SERVED), CapacityWatch(box).watching() as capacity:
        streams = streams_on_all(box, ENDLESS_TOKENS)
        box.ok("apply", "--no-wait", box.write("roll", profile(step_ms=19)))
        until(lambda: roll(box)["current"], "the first change has begun", 60)
        again = box.ok("apply", "--no-wait", str(box.profiles / "roll.toml"))
        assert "replace roll-2" in again
        began_at = roll(box)["began_at"]
        box.ok("apply", "--no-wait", box.write("roll", profile(step_ms=18)))
        assert roll(box)["began_at"] > began_at
        streams.flow()
        streams.leave()
        assert until(lambda: ended(box), "the change ends", 60)["outcome"] == "done"
    assert capacity.lowest == REPLICAS - 1
    assert set(steps_ms(box).values()) == {"18"}


def test_a_change_outlives_the_daemon(box: Box) -> None:
    """Killed while a replica drains, and again after the first one was replaced; the second daemon ends what the first began."""
    box.up({"roll": profile()})
    with PlainLoad(box.endpoint, SERVED) as load, CapacityWatch(box).watching() as capacity:
        streams = streams_on_all(box, ENDLESS_TOKENS)
        box.ok("apply", "--no-wait", box.write("roll", profile(step_ms=19)))
        until(lambda: any(r["state"] == "DRAINING" for r in rows(box).values()), "one drains", 60)
        restart_daemon(box)
        streams.flow()
        streams.leave()
        until(lambda: roll(box)["done"] >= 1, "the first is replaced", 60)
        restart_daemon(box)
        assert until(lambda: ended(box), "the change ends", 60)["outcome"] == "done"
        load.reach(10)
    assert capacity.lowest == REPLICAS - 1
    assert set(steps_ms(box).values()) == {"19"}
    assert [row["generation"] for row in rows(box).values()] == [2, 2, 2]


def restart_daemon(box: Box) -> None:
    kill(box.look()["supervisor"]["pid"])
    box.ok("up", "--wait", "0")


def test_restart_of_a_profile_goes_one_by_one(box: Box) -> None:
    box.up({"roll": profile()})
    before = rows(box)
    with PlainLoad(box.endpoint, SERVED), CapacityWatch(box).watching() as capacity:
        box.ok("restart", "roll", timeout_s=120)
    assert capacity.lowest == REPLICAS - 1
    after = rows(box)
    assert all(after[name]["generation"] == row["generation"] + 1 for name, row in before.items())
    assert ended(box)


def test_a_profile_that_serves_nothing_is_not_changed_one_by_one(box: Box) -> None:
    broken: Mapping[str, str] = {"roll": profile(fail_load="bad-flag")}
    done = box.run("up", box.write("roll", broken["roll"]), "--port", str(box.port), "--wait", "30")
    assert done.returncode == 1
    box.ok("apply", box.write("roll", profile()))
    assert box.look()["rollouts"] == []
    for n in range(REPLICAS):
        box.wait_state(f"roll-{n}", "READY")
