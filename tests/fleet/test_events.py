"""What happened is known to the next daemon: events, and when which replica changed its state."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from gpuserved.api.crash import CrashCard
from gpuserved.api.types import LoadView, ReplicaView, RouterView, Status, SupervisorView
from gpuserved.fleet.events import (
    CARDS_MAX,
    FILE_NAME,
    RECENT_MAX,
    REPLICAS_MAX,
    TRANSITIONS_MAX,
    Bus,
    EventJournal,
    Transitions,
    read_events,
)

STATUS = Status(
    generation=1, version="1", endpoint=None, supervisor=SupervisorView(pid=1, version="1", uptime_s=0.0), router=RouterView(),
)  # fmt: skip
CARD = CrashCard(
    replica="demo-0", profile="demo", model="demo", engine="sim", generation=1, at=1.0, cause="exited", message="ended",
    state="BACKOFF", log="1.log", last_lines=["x" * 1000] * 20,
)  # fmt: skip


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Known(NamedTuple):
    """What a daemon knows of what happened."""

    clock: Clock
    bus: Bus
    journal: EventJournal
    transitions: Transitions


def begun(folder: Path, at: float) -> Known:
    journal, clock = EventJournal(folder), Clock(at)
    bus = Bus(lambda: STATUS, lambda: 7, clock, journal=journal)
    return Known(clock, bus, journal, Transitions(journal.past))


def view(state: str, reason: str | None = None, generation: int = 1) -> ReplicaView:
    load = LoadView(generation_tokens_per_s=3.0)
    return ReplicaView(
        id="demo-0", profile="demo", model="demo", engine="sim", state=state, reason=reason, generation=generation, load=load,
    )  # fmt: skip


def test_the_next_daemon_knows_what_happened(tmp_path: Path) -> None:
    known = begun(tmp_path, 100.0)
    known.bus.publish("replica", replica=view("STARTING"), previous_state="STOPPED")
    known.bus.publish("replica", replica=view("READY"), previous_state="STARTING")
    known.bus.publish("telemetry", status=STATUS)
    known.bus.publish("replica", replica=view("READY", "a new reason"), previous_state="READY")
    known.bus.publish("notice", message="demo-0 start 1 crashed: ended", severity="error", crash=CARD)
    known.bus.publish("replica", replica=view("BACKOFF", "killed by SIGKILL"), previous_state="READY")
    known.journal.close()

    known = begun(tmp_path, 200.0)
    assert [event.at for event in known.bus.recent()] == [101.0, 102.0, 105.0, 106.0]
    assert [(change.state, change.reason) for change in known.transitions.of("demo-0")] == [
        ("STARTING", None), ("READY", None), ("BACKOFF", "killed by SIGKILL"),
    ]  # fmt: skip
    assert known.transitions.since("demo-0", "BACKOFF") == 106.0
    assert known.transitions.since("demo-0", "READY") is None, (
        "how it came to be in another state was not seen"
    )
    known.bus.publish("replica", replica=view("STARTING", generation=2), previous_state="BACKOFF")
    assert [event.at for event in known.bus.recent()][-2:] == [106.0, 201.0]
    known.journal.close()
    assert [event.at for event in read_events(tmp_path / FILE_NAME)][-1] == 201.0


def test_a_line_is_short_and_a_broken_one_is_passed_over(tmp_path: Path) -> None:
    known = begun(tmp_path, 100.0)
    known.bus.publish("notice", message="crashed", severity="error", crash=CARD)
    known.bus.publish("replica", replica=view("READY"), previous_state="STARTING")
    known.journal.close()
    path = tmp_path / FILE_NAME
    assert all(len(line) < 700 for line in path.read_bytes().splitlines())
    path.write_bytes(b'{"seq": "x"}\n\xff\xfe\n' + path.read_bytes() + b'{"seq": 3, "at"')
    known = begun(tmp_path, 200.0)
    assert [event.kind for event in known.bus.recent()] == ["notice", "replica"]


def test_it_is_bounded_in_memory_and_on_disk(tmp_path: Path) -> None:
    known = begun(tmp_path, 0.0)
    known.journal.close()
    for _ in range(8):
        known = begun(tmp_path, known.clock())
        for number in range(500):
            known.bus.publish(
                "replica", replica=view("READY" if number % 2 else "STARTING"), previous_state="X"
            )
        known.journal.close()
    assert len(known.bus.recent()) == RECENT_MAX
    assert len(known.transitions.of("demo-0")) <= TRANSITIONS_MAX
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2.5 * 1024 * 1024
    assert len(begun(tmp_path, known.clock()).bus.recent()) == RECENT_MAX


def test_of_many_crashes_the_newest_cards_are_kept(tmp_path: Path) -> None:
    """A replica that crashes for a day leaves hundreds, and those of an engine of many processes are large."""
    known = begun(tmp_path, 100.0)
    for n in range(3 * CARDS_MAX):
        known.bus.publish("notice", message=f"crash {n}", crash=structs.replace(CARD, generation=n))
        known.bus.publish("replica", replica=view("BACKOFF", generation=n), previous_state="READY")
    kept = [event.crash.generation for event in known.bus.recent() if event.crash is not None]
    assert kept == list(range(2 * CARDS_MAX, 3 * CARDS_MAX))
    assert [event.message for event in known.bus.recent() if event.kind == "notice"] == [
        f"crash {n}" for n in range(3 * CARDS_MAX)
    ]
    known.journal.close()


def test_replicas_that_are_long_gone_are_forgotten(tmp_path: Path) -> None:
    known = begun(tmp_path, 100.0)
    for n in range(REPLICAS_MAX + 50):
        for name in ("stays-0", f"gone-{n}"):
            known.bus.publish(
                "replica", replica=structs.replace(view("READY"), id=name), previous_state="STARTING"
            )
    known.journal.close()
    known = begun(tmp_path, 200.0)
    assert len(known.transitions.of("stays-0")) == TRANSITIONS_MAX
    assert len(known.transitions.of(f"gone-{REPLICAS_MAX + 49}")) == 1
    assert known.transitions.of("gone-0") == []
    assert len([n for n in range(REPLICAS_MAX + 50) if known.transitions.of(f"gone-{n}")]) == REPLICAS_MAX - 1
    known.journal.close()
