from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Static

from gpuserve_tui.app import FleetApp, Help
from gpuserve_tui.widgets import GpuTable, ReplicaTable
from gpuserved.api.errors import Unavailable
from gpuserved.api.types import Status

Daemon: TypeAlias = Any  # tests/tui/conftest.py: ScriptedDaemon
Until: TypeAlias = Callable[[Pilot[int], Callable[[], bool]], Awaitable[None]]


def line(app: FleetApp, selector: str) -> str:
    return str(app.screen_stack[0].query_one(selector, Static).visual)


def row(app: FleetApp, table: type[GpuTable | ReplicaTable], key: str) -> list[str]:
    return [cell.plain.strip() for cell in app.screen_stack[0].query_one(table).get_row(key)]


def rows(app: FleetApp) -> int:
    return app.screen_stack[0].query_one(ReplicaTable).row_count


async def test_a_snapshot_is_shown_with_unknowns_as_unknown(
    daemon: Daemon, fleet: Status, until: Until
) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 30)) as pilot:
        assert "waiting for the daemon" in line(app, "#headline")
        daemon.snapshot(fleet)
        await until(pilot, lambda: rows(app) == 3)
        assert line(app, "#headline") == (
            "gpuserve 0.1.0  http://127.0.0.1:8000  1/3 ready  3 in flight, - queued"
        )
        assert row(app, GpuTable, "GPU-a") == [
            "0", "78%", "█████████░ 130.0/140.0", "62", "548", "OK", "llama-0, pid 88123 (not ours)", "NVIDIA H200",
        ]  # fmt: skip
        assert row(app, GpuTable, "GPU-b") == ["1", "-", "-", "-", "-", "LOST", "free", "NVIDIA H200"]
        assert row(app, ReplicaTable, "llama-0")[:9] == [
            "llama-0",
            "READY",
            "in",
            "0",
            "3",
            "3",
            "0",
            "42",
            "1",
        ]
        assert row(app, ReplicaTable, "llama-1")[3:] == ["1", "-", "-", "-", "-", "0", "loading weights"]


async def test_text_of_the_daemon_is_never_markup_nor_control(
    daemon: Daemon, fleet: Status, until: Until
) -> None:
    """`[/]` in data crashes a widget that parses markup; an escape would paint the terminal."""
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 30)) as pilot:
        daemon.snapshot(fleet)
        await until(pilot, lambda: rows(app) == 3)
        assert row(app, ReplicaTable, "llama-2")[-1] == "[/] unrecognized [red]arguments·[31m"
        await pilot.press("down", "down")
        await until(pilot, lambda: "llama-2" in line(app, "#detail"))
        assert "[/] unrecognized [red]arguments·[31m" in line(app, "#detail")


async def test_a_change_updates_its_row_and_leaves_the_cursor(
    daemon: Daemon, fleet: Status, until: Until
) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 30)) as pilot:
        daemon.snapshot(fleet)
        await until(pilot, lambda: rows(app) == 3)
        await pilot.press("down")
        changed = msgspec.structs.replace(fleet.replicas[1], state="READY", rotation="in", phase=None)
        daemon.replica(changed, message="llama-1 is READY")
        await until(pilot, lambda: row(app, ReplicaTable, "llama-1")[1] == "READY")
        assert app.screen.query_one(ReplicaTable).cursor_row == 1
        added = msgspec.structs.replace(fleet.replicas[1], id="llama-3")
        daemon.replica(added)
        await until(pilot, lambda: rows(app) == 4)
        daemon.snapshot(msgspec.structs.replace(fleet, replicas=fleet.replicas[:2]))
        await until(pilot, lambda: rows(app) == 2)
        assert app.screen.query_one(ReplicaTable).cursor_row == 1


async def test_a_lost_daemon_leaves_the_data_marked_as_old_until_it_is_back(
    daemon: Daemon, fleet: Status, until: Until
) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(80, 24)) as pilot:
        daemon.snapshot(fleet)
        await until(pilot, lambda: rows(app) == 3)
        assert not app.screen.has_class("old")
        daemon.cut()
        await until(pilot, lambda: app.screen.has_class("old"))
        assert "disconnected" in line(app, "#banner")
        assert rows(app) == 3
        for _ in range(2):
            daemon.cut(Unavailable("no daemon listens at /x.sock"))
        await until(pilot, lambda: "no daemon listens at /x.sock; trying again" in line(app, "#banner"))
        daemon.snapshot(fleet)
        await until(pilot, lambda: not app.screen.has_class("old"))
        assert not app.screen.query_one("#banner").display
        assert daemon.connections >= 4


async def test_a_silent_daemon_is_said_to_be_silent(
    daemon: Daemon, fleet: Status, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuserve_tui.app.SILENT_S", 0.2)
    app = FleetApp(daemon)
    async with app.run_test(size=(80, 24)) as pilot:
        daemon.snapshot(fleet)
        await until(pilot, lambda: "connected, but silent for" in line(app, "#banner"))


async def test_a_degraded_daemon_says_so(daemon: Daemon, fleet: Status, until: Until) -> None:
    sick = msgspec.structs.replace(fleet.supervisor, degraded="state not saved: disk full")
    app = FleetApp(daemon)
    async with app.run_test(size=(80, 24)) as pilot:
        daemon.snapshot(msgspec.structs.replace(fleet, supervisor=sick, gpus=[]))
        await until(pilot, lambda: line(app, "#banner") == "degraded: state not saved: disk full")
        assert app.screen.query_one("#no-gpus").display
        assert not app.screen.query_one(GpuTable).display


async def test_keys(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon, read_only=True)
    async with app.run_test(size=(80, 24)) as pilot:
        daemon.snapshot(fleet)
        await until(pilot, lambda: rows(app) == 3)
        assert "read-only" in line(app, "#headline")
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, Help))
        text = str(app.screen.query_one("#help Static", Static).visual)
        assert "Detach" in text
        assert "Refresh" in text
        daemon.replica(msgspec.structs.replace(fleet.replicas[0], state="FAILED"))
        await until(pilot, lambda: row(app, ReplicaTable, "llama-0")[1] == "FAILED")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Help))
        daemon.current = msgspec.structs.replace(fleet, endpoint="http://10.0.0.1:80")
        await pilot.press("r")
        await until(pilot, lambda: "http://10.0.0.1:80" in line(app, "#headline"))
        await pilot.press("q")
    assert app.return_value == 0


async def test_everything_is_within_80_by_24(daemon: Daemon, fleet: Status, until: Until) -> None:
    gpus = [msgspec.structs.replace(fleet.gpus[0], index=i, uuid=f"GPU-{i}") for i in range(8)]
    replicas = [msgspec.structs.replace(fleet.replicas[0], id=f"llama-{i}", gpus=[i]) for i in range(8)]
    app = FleetApp(daemon)
    async with app.run_test(size=(80, 24)) as pilot:
        daemon.snapshot(msgspec.structs.replace(fleet, gpus=gpus, replicas=replicas))
        await until(pilot, lambda: rows(app) == 8)
        await pilot.pause()
        for widget in app.screen.walk_children(Widget):
            assert widget.region.right <= 80
        for selector in ("#headline", "#gpus", "#replicas", "#detail", "Footer"):
            region = app.screen.query_one(selector).region
            assert region.height >= 1
            assert region.bottom <= 24
        assert app.screen.query_one("#replicas").region.height >= 8
        visible = sum(c.width + 1 for c in app.screen.query_one(ReplicaTable)._spec if c.width)
        assert visible + len("llama-0 ") <= 78, "every figure of a replica without scrolling"


@pytest.mark.parametrize("size", [(40, 10), (10, 3), (200, 60)])
async def test_any_size_of_terminal_is_survived(
    daemon: Daemon, fleet: Status, until: Until, size: tuple[int, int]
) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(80, 24)) as pilot:
        daemon.snapshot(fleet)
        await until(pilot, lambda: rows(app) == 3)
        await pilot.resize_terminal(*size)
        daemon.replica(msgspec.structs.replace(fleet.replicas[0], state="FAILED"))
        await until(pilot, lambda: row(app, ReplicaTable, "llama-0")[1] == "FAILED")


async def test_a_screenshot_is_an_svg_of_the_data(
    daemon: Daemon, fleet: Status, tmp_path: Path, until: Until
) -> None:
    picture = tmp_path / "tui.svg"
    app = FleetApp(daemon, screenshot=picture)
    async with app.run_test(size=(100, 26)) as pilot:
        daemon.snapshot(fleet)
        await until(pilot, picture.exists)
    assert app.return_value == 0
    texts = "".join(ET.fromstring(picture.read_text()).itertext()).replace("\xa0", " ")
    assert "llama-0" in texts
    assert "loading weights" in texts


async def test_a_screenshot_without_data_fails(
    daemon: Daemon, tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuserve_tui.app.SCREENSHOT_WAIT_S", 0.1)
    app = FleetApp(daemon, screenshot=tmp_path / "tui.svg")
    async with app.run_test(size=(100, 26)) as pilot:
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value == 3
    assert not (tmp_path / "tui.svg").exists()
