"""What happened is known to the next daemon: events, and when which replica changed its state."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from gpuserved.api.crash import CrashCard
from gpuserved.api.types import LoadView, ReplicaView, RouterView, Status, SupervisorView
from gpuserved.fleet.bus import CARDS_MAX, RECENT_MAX, Bus
from gpuserved.fleet.history import FILE_NAME, REPLICAS_MAX, TRANSITIONS_MAX, History, read_events

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


def begun(folder: Path, at: float) -> tuple[Bus, History]:
    bus = Bus(lambda: STATUS, lambda: 7, Clock(at))
    history = History(bus)
    history.begin(folder)
    return bus, history


def view(state: str, reason: str | None = None, generation: int = 1) -> ReplicaView:
    load = LoadView(generation_tokens_per_s=3.0)
    return ReplicaView(
        id="demo-0", profile="demo", model="demo", engine="sim", state=state, reason=reason, generation=generation, load=load,
    )  # fmt: skip


def test_the_next_daemon_knows_what_happened(tmp_path: Path) -> None:
    bus, history = begun(tmp_path, 100.0)
    bus.publish("replica", replica=view("STARTING"), previous_state="STOPPED")
    bus.publish("replica", replica=view("READY"), previous_state="STARTING")
    bus.publish("telemetry", status=STATUS)
    bus.publish("replica", replica=view("READY", "a new reason"), previous_state="READY")
    bus.publish("notice", message="demo-0 start 1 crashed: ended", severity="error", crash=CARD)
    bus.publish("replica", replica=view("BACKOFF", "killed by SIGKILL"), previous_state="READY")
    history.close()

    bus, history = begun(tmp_path, 200.0)
    assert [event.at for event in bus.recent()] == [101.0, 102.0, 105.0, 106.0]
    assert [(change.state, change.reason) for change in history.of("demo-0")] == [
        ("STARTING", None), ("READY", None), ("BACKOFF", "killed by SIGKILL"),
    ]  # fmt: skip
    assert history.since("demo-0", "BACKOFF") == 106.0
    assert history.since("demo-0", "READY") is None, "how it came to be in another state was not seen"
    bus.publish("replica", replica=view("STARTING", generation=2), previous_state="BACKOFF")
    assert [event.at for event in bus.recent()][-2:] == [106.0, 201.0]
    history.close()
    assert [event.at for event in read_events(tmp_path / FILE_NAME)][-1] == 201.0


def test_a_line_is_short_and_a_broken_one_is_passed_over(tmp_path: Path) -> None:
    bus, history = begun(tmp_path, 100.0)
    bus.publish("notice", message="crashed", severity="error", crash=CARD)
    bus.publish("replica", replica=view("READY"), previous_state="STARTING")
    history.close()
    path = tmp_path / FILE_NAME
    assert all(len(line) < 700 for line in path.read_bytes().splitlines())
    path.write_bytes(b'{"seq": "x"}\n\xff\xfe\n' + path.read_bytes() + b'{"seq": 3, "at"')
    bus, history = begun(tmp_path, 200.0)
    assert [event.kind for event in bus.recent()] == ["notice", "replica"]


def test_it_is_bounded_in_memory_and_on_disk(tmp_path: Path) -> None:
    bus, history = begun(tmp_path, 0.0)
    history.close()
    for _ in range(8):
        bus, history = begun(tmp_path, bus._clock())
        for number in range(500):
            bus.publish("replica", replica=view("READY" if number % 2 else "STARTING"), previous_state="X")
        history.close()
    assert len(bus.recent()) == RECENT_MAX
    assert len(history.of("demo-0")) <= TRANSITIONS_MAX
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2.5 * 1024 * 1024
    assert len(begun(tmp_path, bus._clock())[0].recent()) == RECENT_MAX


def test_of_many_crashes_the_newest_cards_are_kept(tmp_path: Path) -> None:
    """A replica that crashes for a day leaves hundreds, and those of an engine of many processes are large."""
    bus, history = begun(tmp_path, 100.0)
    for n in range(3 * CARDS_MAX):
        bus.publish("notice", message=f"crash {n}", crash=structs.replace(CARD, generation=n))
        bus.publish("replica", replica=view("BACKOFF", generation=n), previous_state="READY")
    kept = [event.crash.generation for event in bus.recent() if event.crash is not None]
    assert kept == list(range(2 * CARDS_MAX, 3 * CARDS_MAX))
    assert [event.message for event in bus.recent() if event.kind == "notice"] == [
        f"crash {n}" for n in range(3 * CARDS_MAX)
    ]
    history.close()


def test_replicas_that_are_long_gone_are_forgotten(tmp_path: Path) -> None:
    bus, history = begun(tmp_path, 100.0)
    for n in range(REPLICAS_MAX + 50):
        for name in ("stays-0", f"gone-{n}"):
            bus.publish("replica", replica=structs.replace(view("READY"), id=name), previous_state="STARTING")
    history.close()
    bus, history = begun(tmp_path, 200.0)
    assert len(history.of("stays-0")) == TRANSITIONS_MAX
    assert len(history.of(f"gone-{REPLICAS_MAX + 49}")) == 1
    assert history.of("gone-0") == []
    assert len([n for n in range(REPLICAS_MAX + 50) if history.of(f"gone-{n}")]) == REPLICAS_MAX - 1
    history.close()
