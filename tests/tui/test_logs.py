"""Logs on the screen: floods, following, searching, filtering, pages of the past, taking away."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from gpuserve_tui.app import FleetApp
from gpuserved.api.inspect import LogBatch, LogPage
from gpuserved.api.types import Status

Daemon: TypeAlias = Any  # tests/tui/conftest.py: ScriptedDaemon
Until: TypeAlias = Callable[[Pilot[int], Callable[[], object]], Awaitable[None]]
PREFIX = "(EngineCore pid=1) {} 11-24 02:02:42 [core.py:1] "


def batch(lines: list[str], dropped: int = 0, **more: Any) -> LogBatch:
    return LogBatch(source="qwen-0", at=time.time(), lines=lines, dropped=dropped, **more)


async def at_the_log(app: FleetApp, pilot: Pilot[int], daemon: Daemon, fleet: Status, until: Until) -> None:
    daemon.snapshot(fleet)
    await until(pilot, lambda: app.overview.replicas.cursor is not None)
    await pilot.press("l")
    await until(pilot, lambda: ["qwen-0"] in daemon.followed and app.state.pane == "logs")


def title(app: FleetApp) -> str:
    return str(app.main.query_one("#log-title", Static).visual)


async def feed(app: FleetApp, pilot: Pilot[int], daemon: Daemon, until: Until, *batches: LogBatch) -> None:
    before = app.session.log.lines.received
    for each in batches:
        daemon.log.put(each)
    wanted = before + sum(len(each.lines) for each in batches)
    await until(pilot, lambda: app.session.log.lines.received == wanted)


async def test_following_pausing_and_what_is_new(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        await feed(app, pilot, daemon, until, batch([f"line {n}" for n in range(100)]))
        assert app.logs.log_view.text.splitlines()[-1].strip() == "line 99"
        await pilot.press("k", "k")
        top = app.logs.log_view.text.splitlines()[0]
        await feed(app, pilot, daemon, until, batch([f"new {n}" for n in range(312)]))
        assert app.logs.log_view.text.splitlines()[0] == top, "what one reads stays where it is"
        await until(pilot, lambda: "312 new (G)" in title(app))
        await pilot.press("G")
        await until(pilot, lambda: "FOLLOW" in title(app))
        assert app.logs.log_view.text.splitlines()[-1].strip() == "new 311"


async def test_a_flood_neither_freezes_the_screen_nor_goes_uncounted(
    daemon: Daemon, fleet: Status, until: Until
) -> None:
    """As much as the daemon lets through, and what it dropped, while keys are pressed."""
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        for _ in range(60):
            daemon.log.put(batch(["x" * 120] * 500, dropped=12_000))
        for key in ("w", "t", "w", "t", "2", "4"):
            await pilot.press(key)
        assert app.state.pane == "logs"
        await until(
            pilot, lambda: app.session.log.lines.dropped + app.session.log.lines.received == 60 * 12_500
        )
        await until(pilot, lambda: f"{app.session.log.lines.dropped:,} dropped" in title(app))
        assert len(app.session.log.lines.shown) <= 12_100
        assert "lines not shown: too many at once" in "".join(
            app.session.log.lines.line(n).text for n in app.session.log.lines.shown[-600:]
        )


async def test_search_filter_and_level(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        lines = [PREFIX.format("INFO") + f"step {n}" for n in range(50)]
        lines[10] = PREFIX.format("ERROR") + "[/] boom [red]"
        lines[20] = PREFIX.format("WARNING") + "boom again"
        await feed(app, pilot, daemon, until, batch(lines))
        await pilot.press("slash", *"boom", "enter")
        await until(
            pilot, lambda: app.logs.log_view.current and "boom again" in app.logs.log_view.current.text
        )
        await pilot.press("N")
        await until(
            pilot, lambda: app.logs.log_view.current and "[/] boom [red]" in app.logs.log_view.current.text
        )
        daemon.pages = [LogPage(lines=["an old boom\x1b[31m"], before="1.1")]
        await pilot.press("N")
        await until(pilot, lambda: len(app.screen_stack) > 1)
        assert app.screen.query_one("TextLines").text == "an old boom"  # type: ignore[attr-defined]
        assert daemon.page_questions[-1] == ("qwen-0", None, "boom")
        await pilot.press("escape")
        await pilot.press("v", "v")
        await until(pilot, lambda: len(app.session.log.lines.shown) == 2)
        await pilot.press("v", "v", "ampersand", *"step", "enter")
        await until(pilot, lambda: len(app.session.log.lines.shown) == 48)
        await pilot.press("escape")
        await until(pilot, lambda: len(app.session.log.lines.shown) == 50)


async def test_pages_of_the_past(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        await feed(app, pilot, daemon, until, batch([f"line {n}" for n in range(60)], before="7.900"))
        daemon.pages = [LogPage(lines=["older 1", "older 2"], before=None)]
        await pilot.press("g")
        assert daemon.page_questions == []
        await pilot.press("g")
        await until(pilot, lambda: len(app.session.log.lines.shown) == 62)
        assert daemon.page_questions == [("qwen-0", "7.900", None)]
        assert app.logs.log_view.current is not None
        assert app.logs.log_view.current.text == "line 0", "the line one reads stays"
        await pilot.press("g", "g")
        await pilot.pause()
        assert len(daemon.page_questions) == 1, "there is nothing before the beginning"


async def test_sources(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        await pilot.press("less_than_sign")
        await until(pilot, lambda: daemon.followed[-1] == [""])
        await until(pilot, lambda: "LOG daemon" in title(app))
        await pilot.press("less_than_sign")
        await until(pilot, lambda: daemon.followed[-1] == [f"qwen-{n}" for n in range(8)])
        await feed(app, pilot, daemon, until, batch(["hello"]))
        assert app.logs.log_view.text.split() == ["qwen-0", "hello"]


async def test_all_logs_go_back_as_one_in_the_order_of_their_times(
    daemon: Daemon, fleet: Status, until: Until
) -> None:
    """One log is busy, another nearly silent: what the second said long ago stands where it was said."""
    busy = [f"INFO 11-24 {n // 3600:02}:{n // 60 % 60:02}:{n % 60:02} [a.py:1] busy {n}" for n in range(2000)]
    rare = [f"INFO 11-24 00:{minute:02}:00 [b.py:1] rare {minute}" for minute in range(0, 33, 3)]
    daemon.files = {"qwen-0": busy, "qwen-1": rare}
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        await pilot.press("less_than_sign", "less_than_sign")
        await until(pilot, lambda: len(daemon.followed[-1]) == 8)
        for name in daemon.followed[-1]:
            text = daemon.files.get(name, [])
            first = LogBatch(
                source=name,
                at=time.time(),
                lines=text[-30:],
                before=str(len(text) - 30) if len(text) > 30 else None,
            )
            daemon.log.put(first)
        # The last thirty lines of the busy log are half a minute of it: more is fetched to fill the screen.
        await until(pilot, lambda: len(app.session.log.lines.shown) >= 300)
        while not app.session.log.at_beginning:
            have = len(app.session.log.lines.shown)
            await pilot.press("g", "g")
            await until(pilot, lambda: len(app.session.log.lines.shown) > have)  # noqa: B023 - awaited at once
        lines = [app.session.log.lines.line(number).text for number in app.session.log.lines.shown]
        assert [line for line in lines if "busy" in line] == busy
        assert [line for line in lines if "rare" in line] == rare
        assert [line[5:19] for line in lines] == sorted(line[5:19] for line in lines)


async def test_what_one_reads_is_never_pulled_away(daemon: Daemon, fleet: Status, until: Until) -> None:
    """However much is written meanwhile. It is counted, memory stays bounded, and G shows the end again."""
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        await feed(app, pilot, daemon, until, batch([f"line {n}" for n in range(100)]))
        await pilot.press("k", "k")
        top = app.logs.log_view.text.splitlines()[0]
        await feed(app, pilot, daemon, until, *(batch(["x" * 50] * 500) for _ in range(60)))
        assert app.logs.log_view.text.splitlines()[0] == top
        assert len(app.session.log.lines.shown) <= 20_500
        await until(pilot, lambda: "30000 new (G)" in title(app))
        before = len(daemon.followed)
        await pilot.press("G")
        await until(
            pilot, lambda: len(daemon.followed) == before + 1 and len(app.session.log.lines.shown) == 0
        )
        await feed(app, pilot, daemon, until, batch(["the end"]))
        await until(pilot, lambda: "FOLLOW" in title(app))
        assert app.logs.log_view.text.splitlines()[-1].strip() == "the end"


async def test_wide_characters_and_wrapping(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(40, 20)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        await feed(app, pilot, daemon, until, batch(["显存不足" * 12, "x" * 100]))
        assert app.logs.log_view.count == 2
        await pilot.press("w")
        await until(pilot, lambda: app.logs.log_view.count >= 6)
        assert app.logs.log_view.text.replace("\n", "").replace(" ", "") == "显存不足" * 12 + "x" * 100


async def test_copying(daemon: Daemon, fleet: Status, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        written: list[str] = []
        assert app._driver is not None
        monkeypatch.setattr(app._driver, "write", written.append)
        await at_the_log(app, pilot, daemon, fleet, until)
        await feed(app, pilot, daemon, until, batch(["one", "[two] é"]))
        await pilot.press("y")
        await until(pilot, lambda: any("]52;c;" in text for text in written))
        sent = [text[7:-1] for text in written if text.startswith("\x1b]52;c;")]
        copied = [base64.b64decode(text).decode() for text in sent]
        assert copied == ["[two] é"]


async def test_saving(daemon: Daemon, fleet: Status, until: Until, tmp_path: Path) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(100, 30)) as pilot:
        await at_the_log(app, pilot, daemon, fleet, until)
        await feed(app, pilot, daemon, until, batch(["one", "two"]))
        for name in ("a.log", "a.json", "a.svg"):
            await pilot.press("x")
            await until(pilot, lambda: len(app.screen_stack) > 1)
            app.screen.query_one("#answer", Input).value = str(tmp_path / name)
            await pilot.press("enter")
            await until(pilot, (tmp_path / name).exists)
        assert (tmp_path / "a.log").read_text() == "one\ntwo\n"
        assert json.loads((tmp_path / "a.json").read_text())["status"]["generation"] == 4
        assert "<svg" in (tmp_path / "a.svg").read_text()
        await pilot.press("x")
        await until(pilot, lambda: len(app.screen_stack) > 1)
        app.screen.query_one("#answer", Input).value = str(tmp_path / "a.log")
        await pilot.press("enter")
        await until(pilot, lambda: any("nothing was written" in str(n.message) for n in app._notifications))
