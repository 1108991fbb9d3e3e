"""Every scene in every size and colouring, against pictures that somebody has looked at.

`GPUSERVE_SNAPSHOTS=update pytest tests/tui/test_snapshots.py` writes them anew; GPUSERVE_SNAPSHOT_SVG=DIR also saves the SVGs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
from tests.tui.fleets import NOW, SCENES
from tests.tui.pictures import Picture, read
from tests.tui.stopwatch import Stopwatch
from textual.pilot import Pilot

from gpuserve_tui.app import FleetApp
from gpuserve_tui.model.logbuffer import log_line
from gpuserve_tui.settings import Settings
from gpuserved.api.errors import Unavailable

Daemon: TypeAlias = Any  # tests/tui/conftest.py: ScriptedDaemon
Until: TypeAlias = Callable[[Pilot[int], Callable[[], object]], Awaitable[None]]
FOLDER = Path(__file__).with_name("snapshots")
SIZES = [(120, 36), (80, 24), (60, 16)]
MODES = ("dark", "light", "nocolor")
LOG = [
    "(EngineCore pid=4711) INFO 11-24 02:02:42 [loggers.py:271] Engine 000: Running: 64 reqs, Waiting: 14 reqs, GPU KV cache usage: 97.1%",
    "(EngineCore pid=4711) WARNING 11-24 02:02:43 [scheduler.py:90] Sequence group 8812 is preempted [/] [red]",
    "(APIServer pid=4700) ERROR 11-24 02:02:44 [serving.py:12] 显存不足 \x1b[31mCUDA out of memory\x1b[0m",
]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the screen may depend on where, when or in what terminal the test runs."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for name in ("NO_COLOR", "SSH_CONNECTION", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")


async def settled(app: FleetApp, pilot: Pilot[int]) -> str:
    """The screen once two looks at it are the same: scrollbars come and go a moment after their lines."""
    before = ""
    for _ in range(50):
        app.draw()
        await pilot.pause(0.05)
        now = app.export_screenshot(title="gpuserve-tui")
        if read(now) == read(before or now) and before:
            return now
        before = now
    raise AssertionError("the screen never stands still")


async def picture(
    daemon: Daemon,
    until: Until,
    scene: str,
    size: tuple[int, int],
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Picture:
    """The Overview of a scene, of a daemon of its own: a feed reads on until its connection ends."""
    daemon = type(daemon)()
    if mode == "nocolor":
        monkeypatch.setenv("NO_COLOR", "1")
    monotonic = Stopwatch()  # ages stand still
    app = FleetApp(
        daemon,
        settings=Settings(theme="light" if mode == "light" else "dark"),
        host="h200-01",
        clock=lambda: NOW,
        monotonic=monotonic,
    )
    async with app.run_test(size=size) as pilot:
        fleet = SCENES[scene]()
        daemon.snapshot(fleet)
        await until(pilot, lambda: app.state.status is not None)
        if scene == "disconnected":
            daemon.cut(Unavailable("no daemon listens at /run/gpuserve/control.sock"))
            await until(pilot, lambda: app.state.lost is not None)
        monotonic.advance(0.4 if scene != "disconnected" else 72.4)
        names = app.state.replica_names
        if "qwen-5" in names:
            app.overview.replicas.to("qwen-5")
        if names:
            app.session.log.watch(app.overview.replicas.cursor or "", names)
        app.session.log._buffer.append([log_line("qwen-5", raw, None) for raw in LOG])
        app.overview.log_view.changed()
        for series in app.state._board._series.values():
            for n in range(60):
                series.tokens.append(2000.0 + 30 * n)
                series.waiting.append(float(n % 15))
                series.kv_pct.append(40.0 + n)
        svg = await settled(app, pilot)
    daemon.followed.append([])
    daemon.cut()
    folder = os.environ.get("GPUSERVE_SNAPSHOT_SVG")
    if folder:
        (Path(folder) / f"{scene}-{size[0]}x{size[1]}-{mode}.svg").write_text(svg)
    return read(svg)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("scene", SCENES)
async def test_the_screen_is_as_it_was_reviewed(
    daemon: Daemon, until: Until, scene: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for mode in MODES:
        with monkeypatch.context() as patch:
            shown[mode] = await picture(daemon, until, scene, size, mode, patch)
    words = shown["dark"].text
    assert shown["light"].text == words, "a theme changes colours alone"
    assert shown["nocolor"].text == words, "without colour nothing is missing"
    made = (
        "\n".join(
            ["== text", *words, *(line for mode in MODES for line in (f"== {mode}", *shown[mode].styles))]
        )
        + "\n"
    )
    path = FOLDER / f"{scene}-{size[0]}x{size[1]}.txt"
    if os.environ.get("GPUSERVE_SNAPSHOTS") == "update":
        FOLDER.mkdir(exist_ok=True)
        path.write_text(made, encoding="utf-8")
    assert made.splitlines() == path.read_text("utf-8").splitlines()


async def test_no_color_is_grey_and_can_be_read(
    daemon: Daemon, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    found = await picture(daemon, until, "normal", (120, 36), "nocolor", monkeypatch)
    # The active screen's name is dark on light; every other text is light on dark.
    lines = [line for number, line in enumerate(found.styles) if "Overview" not in found.text[number]]
    used = {word.split(":")[0] for line in lines for word in line.split() if word.startswith("#")}
    assert used
    for colour in used:
        red, green, blue = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
        assert red == green == blue, "a grey"
        assert red > 90, "far from the dark background"


async def test_a_difference_is_seen(daemon: Daemon, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: another figure, and another colour, are other pictures."""
    first = await picture(daemon, until, "normal", (80, 24), "dark", monkeypatch)
    changed = SCENES["normal"]()
    other = [
        msgspec.structs.replace(r, state="UNHEALTHY") if r.id == "qwen-0" else r for r in changed.replicas
    ]
    monkeypatch.setitem(SCENES, "normal", lambda: msgspec.structs.replace(changed, replicas=other))
    second = await picture(daemon, until, "normal", (80, 24), "dark", monkeypatch)
    assert first.text != second.text
    assert first.styles != second.styles
