"""What the screen shows of what the daemon says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
import pytest
from tests.tui.fleets import NOW, SCENES, many, replica
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Static

from gpuserve_tui.app import FleetApp
from gpuserve_tui.model import state
from gpuserve_tui.model.actions import PANES
from gpuserve_tui.screens.events import EventsPane
from gpuserve_tui.screens.gpus import GpusPane
from gpuserve_tui.screens.replicas import ReplicasPane
from gpuserved.api.crash import CrashCard, CrashGpu
from gpuserved.api.errors import Unavailable
from gpuserved.api.inspect import EventsView
from gpuserved.api.types import FleetEvent, Status

Daemon: TypeAlias = Any  # tests/tui/conftest.py: ScriptedDaemon
Until: TypeAlias = Callable[[Pilot[int], Callable[[], object]], Awaitable[None]]


def line(app: FleetApp, selector: str) -> str:
    widget = app.main.query_one(selector, Static)
    return str(widget.visual) if widget.display else ""


def row(text: str, key: str) -> str:
    return next(one for one in text.splitlines() if key in one)


async def show(app: FleetApp, pilot: Pilot[int], daemon: Daemon, fleet: Status, until: Until) -> None:
    daemon.snapshot(fleet)
    await until(
        pilot, lambda: len(app.overview.replicas.rows) == len(fleet.replicas) and app.state.status is not None
    )
    await pilot.pause()


async def test_one_screen_says_who_holds_what_and_why_something_is_down(
    daemon: Daemon, fleet: Status, until: Until
) -> None:
    app = FleetApp(daemon, host="h200-01")
    async with app.run_test(size=(120, 36)) as pilot:
        assert "waiting for the daemon" in line(app, "#head")
        await show(app, pilot, daemon, fleet, until)
        head = line(app, "#head")
        for part in ("h200-01", "connected", "qwen", "5/8 ready", "2.8k tok/s", "RW"):
            assert part in head
        gpus, replicas = app.overview.gpus.text, app.overview.replicas.text
        assert "130.1/140" in row(gpus, "qwen-0")
        assert "9.8 alice" in row(gpus, "qwen-6")
        assert "loading weights 38%, 41s" not in replicas, "ages follow the clock"
        assert "loading weights 38%" in row(replicas, "qwen-4")
        assert "exit 1: [/] CUDA error [red]out of memory" in row(replicas, "qwen-7")
        assert "130^" in row(replicas, "qwen-5"), "far more requests than the median is marked"
        assert "2900ms" in row(replicas, "qwen-5")
        alerts = line(app, "#alerts")
        assert "GPU 6: 9.8 GiB of pid 88123 (alice, python), not ours" in alerts
        assert "qwen-7 down" in alerts


async def test_unknown_is_never_zero(daemon: Daemon, until: Until, fleet: Status) -> None:
    blank = replica(0, in_flight=None, running=None, waiting=None, kv_cache_pct=None, load=None)
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await show(app, pilot, daemon, msgspec.structs.replace(fleet, replicas=[blank]), until)
        cells = row(app.overview.replicas.text, "qwen-0").split()
        assert cells[cells.index("0") + 1 : -2] == ["-"] * 9


async def test_the_cursor_belongs_to_its_replica(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        await pilot.press("j", "j", "down", "k")
        assert app.overview.replicas.cursor == "qwen-2"
        await pilot.press("o", "o", "o", "O")
        daemon.telemetry(msgspec.structs.replace(fleet, replicas=fleet.replicas[::-1]))
        await until(pilot, lambda: len(app.state.trend("").tokens) > 1)
        assert app.overview.replicas.cursor == "qwen-2"
        daemon.snapshot(msgspec.structs.replace(fleet, replicas=fleet.replicas[3:]))
        await until(pilot, lambda: len(app.overview.replicas.rows) == 5)
        assert app.overview.replicas.cursor is not None


async def test_a_filter_hides_rows_and_says_so(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        await pilot.press("slash", *"state:failed", "enter")
        await until(pilot, lambda: [r.key for r in app.overview.replicas.rows] == ["qwen-7"])
        assert "/state:failed" in line(app, "#tabs")
        await pilot.press("escape")
        await until(pilot, lambda: len(app.overview.replicas.rows) == 8)


async def test_lost_silent_and_back(
    daemon: Daemon, fleet: Status, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        assert line(app, "#banner") == ""
        daemon.cut()
        await until(pilot, lambda: "DISCONNECTED" in line(app, "#banner"))
        assert app.main.has_class("stale")
        assert "exit 1" in app.overview.replicas.text, "the last data stays"
        for _ in range(2):
            daemon.cut(Unavailable("no daemon listens at /x.sock"))
        await until(pilot, lambda: "no daemon listens at /x.sock" in line(app, "#banner"))
        daemon.snapshot(fleet)
        await until(pilot, lambda: line(app, "#banner") == "" and not app.main.has_class("stale"))
        assert daemon.connections >= 4
        monkeypatch.setattr(state, "SILENT_S", 0.05)
        await until(pilot, lambda: "SILENT  connected, but no figures for" in line(app, "#banner"))


async def test_frozen_is_the_display_and_not_the_data(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        await pilot.press("p")
        daemon.replica(replica(0, state="FAILED", reason="gone"), previous="READY")
        await until(
            pilot, lambda: app.state.status is not None and app.state.status.replicas[0].state == "FAILED"
        )
        await pilot.pause(0.3)
        assert "FROZEN" in line(app, "#head")
        assert "ready" in row(app.overview.replicas.text, "qwen-0")
        await pilot.press("p")
        await until(pilot, lambda: "failed" in row(app.overview.replicas.text, "qwen-0"))


async def test_events_of_before_and_of_now_once_each(daemon: Daemon, fleet: Status, until: Until) -> None:
    daemon.told = EventsView(
        events=[
            FleetEvent(
                seq=1, at=time.time() - 60, kind="notice", message="GPU 7: OK -> LOST", severity="error"
            )
        ]
    )
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        daemon.replica(replica(1, state="BACKOFF", reason="killed by SIGKILL"), previous="READY")
        await until(pilot, lambda: app.state.view.unread == 1)
        await until(pilot, lambda: "5 Events 1" in line(app, "#tabs"))
        daemon.cut()
        await until(pilot, lambda: app.state.lost is not None)
        missed = FleetEvent(seq=2, at=time.time() + 1, kind="notice", message="told while nobody listened")
        daemon.told = EventsView(events=[*daemon.told.events, missed])
        daemon.snapshot(fleet)
        await until(pilot, lambda: app.state.lost is None and app.state.view.unread == 2)
        await pilot.press("5")
        pane = app.panes["events"]
        assert isinstance(pane, EventsPane)
        await until(pilot, lambda: len(pane.table.rows) == 3)
        assert "READY -> BACKOFF: killed by SIGKILL" in pane.table.text
        assert "GPU 7: OK -> LOST" in pane.table.text
        assert "5 Events " in line(app, "#tabs")


async def test_the_gpu_tree_names_every_owner(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 50)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        await pilot.press("3")
        pane = app.panes["gpus"]
        assert isinstance(pane, GpusPane)
        await until(pilot, lambda: pane.table.rows)
        text = pane.table.text
        assert "├─ 88123 python" in text
        assert "not ours: alice" in row(text, "88123")
        assert "0.5" in row(text, "unattributed")
        assert "4000 VLLM::Worker" in text


async def test_everything_about_a_replica(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 60)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) > 1)
        text = app.screen.query_one("TextLines").text  # type: ignore[attr-defined]
        for part in (
            "HF_TOKEN=********", "--uds '/run/x sock'", "p50 180 ms, p95 640 ms", "READY -> BACKOFF  killed by SIGKILL",
            "[/] RuntimeError: CUDA error", "44% of looked-up tokens",
        ):  # fmt: skip
            assert part in text


async def test_why_the_last_start_failed_and_what_helps(daemon: Daemon, fleet: Status, until: Until) -> None:
    daemon.card = CrashCard(
        replica="qwen-7", profile="qwen", model="qwen3-8b", engine="vllm", generation=3, at=NOW - 3, started_at=NOW - 63,
        signal=9, oom_killed=True, cause="out_of_memory", message="CUDA [/] out of memory", lever="lower gpu_memory_utilization",
        state="BACKOFF", gpus=[CrashGpu(index=7, uuid="GPU-7", state="OK", memory_used_bytes=1024**3, memory_total_bytes=1024**4)],
        last_lines=["INFO starting", "", "   ", "ERROR boom"], log="/log/3.log",
    )  # fmt: skip
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 60)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        await pilot.press("G", "enter")
        await until(pilot, lambda: len(app.screen_stack) > 1)
        text = app.screen.query_one("TextLines").text  # type: ignore[attr-defined]
        for part in (
            "Last crash: start 3", "after 1m00s", "killed by SIGKILL, the kernel killed for memory", "CUDA [/] out of memory",
            "helps      lower gpu_memory_utilization", "GPU 7      OK, 1.0/1024.0 GiB",
            "last lines:\n    INFO starting\n    ERROR boom\n  log        /log/3.log",
        ):  # fmt: skip
            assert part in text


async def test_a_rolling_change_and_the_queue_of_each_model_are_in_sight(
    daemon: Daemon, until: Until
) -> None:
    rolling = SCENES["rolling"]()
    app = FleetApp(daemon, clock=lambda: NOW)
    async with app.run_test(size=(120, 36)) as pilot:
        await show(app, pilot, daemon, rolling, until)
        said = str(app.overview.rollout.visual)
        assert "llama: rolling change 1 of 2 (3m32s)  llama-1: canary asked, no answer yet" in said
        assert "qwen: rolled back to what ran before: qwen-0: canary" in line(app, "#alerts")
        totals = app.overview.replicas.text.splitlines()[-3:]
        assert [" ".join(each.split()[:7]) for each in totals] == [
            "all llama-70b queue 0 50 48 3", "all qwen3-8b queue 37 194 186 42", "ALL queue 37 341 234 45 2.8k",
        ]  # fmt: skip
        await pilot.resize_terminal(80, 20)
        await pilot.pause()
        await until(pilot, lambda: len(app.overview.replicas.text.splitlines()) == 1 + 6 + 2)
        assert "all qwen3-8b" in app.overview.replicas.text, "where there is no room, what queues stays"
        done = msgspec.structs.replace(rolling, rollouts=rolling.rollouts[1:])
        daemon.snapshot(done)
        await until(pilot, lambda: not app.overview.rollout.display)


async def test_a_layout_that_comes_after_its_drawing_is_drawn(
    daemon: Daemon, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a screen is resized, drawn, and only then laid out; no figures come after that."""
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await show(app, pilot, daemon, many(12), until)
        await until(
            pilot, lambda: "LOG qwen-0" in str(app.overview.rules[3].visual)
        )  # nothing else is drawn after it
        monkeypatch.setattr(app, "call_after_refresh", lambda call, *args: call(*args))
        await pilot.resize_terminal(80, 20)
        await until(pilot, lambda: "TTFT95" in app.overview.replicas.text)  # a column of narrow screens


@pytest.mark.parametrize("scene", SCENES)
async def test_any_fleet_fits_any_terminal(daemon: Daemon, until: Until, scene: str) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(300, 90)) as pilot:
        await show(app, pilot, daemon, SCENES[scene](), until)
        for size in ((120, 36), (80, 24), (60, 16), (40, 10), (10, 3)):
            await pilot.resize_terminal(*size)
            for pane in reversed(PANES):
                app.show_pane(pane)
                await pilot.pause()
            for widget in app.main.walk_children(Widget):
                if widget.display and widget.is_on_screen:
                    assert widget.region.right <= size[0]
            if size[1] >= 16:
                assert app.overview.replicas.size.height >= min(len(app.overview.replicas.rows) + 2, 8)


async def test_many_gpus_scroll_and_the_total_stays(daemon: Daemon, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(80, 24)) as pilot:
        await show(app, pilot, daemon, many(64), until)
        await pilot.press("G")
        await pilot.pause()
        table = app.overview.replicas
        shown = ["".join(segment.text for segment in table.render_line(y)) for y in range(table.size.height)]
        assert "qwen-63" in shown[-2]
        assert shown[-1].startswith(" ALL")


async def test_a_resize_moves_nothing_away(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await show(app, pilot, daemon, fleet, until)
        for size in ((80, 24), (40, 10), (10, 3), (200, 60), (60, 16)):
            await pilot.resize_terminal(*size)
            await pilot.pause(0.05)
        assert isinstance(app.panes["replicas"], ReplicasPane)
        assert app.overview.replicas.cursor == "qwen-0"
        assert "qwen-0" in app.overview.replicas.text
