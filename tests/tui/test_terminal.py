"""The screen in a real terminal, on a real daemon with look-alike replicas: loss and return of the daemon, a clean end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from tests.e2e.box import Box, Json, until
from tests.tui.terminal import Terminal

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import Conflict
from gpuserved.api.types import ReplicasRequest

pytestmark = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="tmux is not installed: scripts/install-test-tools does it"
)
PROFILE = """
model = "sim/demo"
served_name = "demo"
engine = "sim"
replicas = 2
max_model_len = 4096
[sim]
gpus = 2
"""
TUI = (sys.executable, "-m", "gpuserve_tui.main")
Attach = Callable[..., Terminal]


@pytest.fixture(scope="module")
def served(shared_box: Box) -> Box:
    shared_box.up({"demo": PROFILE})
    return shared_box


@pytest.fixture
def attach(served: Box) -> Iterator[Attach]:
    """Start the screen in a terminal."""
    opened: list[Terminal] = []

    def start(
        *flags: str, command: Sequence[str] = TUI, size: tuple[int, int] = (100, 30), term: str = "tmux-256color", **env: str,
    ) -> Terminal:  # fmt: skip
        opened.append(Terminal([*command, *flags], served.env | {"LANG": "C.UTF-8"} | env, size, term))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def restored(terminal: Terminal) -> None:
    """The terminal is as a shell needs it: echo, lines, cursor, no mouse reports, the main screen."""
    text = terminal.shows("rc=")
    terminal.shows("icanon")
    text = terminal.text
    assert " echo " in text.replace("\n", " ") and "-icanon" not in text  # noqa: PT018 - one state of one terminal
    assert terminal.flag("alternate_on") == "0"
    assert terminal.flag("cursor_flag") == "1"
    assert terminal.flag("mouse_any_flag") == "0"


def test_a_killed_daemon_is_announced_and_its_successor_is_found(served: Box, attach: Attach) -> None:
    terminal = attach()
    terminal.shows("2/2 ready")
    before = served.status()["supervisor"]["pid"]
    os.kill(before, signal.SIGKILL)
    terminal.shows("DISCONNECTED")
    terminal.shows("demo-0")  # the last data stays
    terminal.press("S")
    terminal.shows("not connected to the daemon")
    served.up({"demo": PROFILE})
    terminal.shows("DISCONNECTED", absent=True)
    terminal.shows("2/2 ready")
    assert served.status()["supervisor"]["pid"] != before
    # What happened under the daemon that was killed is still told.
    terminal.press("5")
    terminal.shows(f"gpuserved PID {before} serves")
    terminal.shows("STARTING -> READY")
    assert f"gpuserved PID {before}" in served.ok("events")
    history = ControlClient(served.roots.control_socket).detail("demo-0").history
    assert [change.state for change in history][:2] == ["STARTING", "READY"]
    terminal.press("q")
    restored(terminal)


def test_acting_on_a_real_replica(served: Box, attach: Attach) -> None:
    terminal = attach(size=(120, 36))
    terminal.shows("2/2 ready")
    terminal.shows("demo-1")
    terminal.press("G")
    terminal.press("d")
    terminal.shows("Drain demo-1?")
    time.sleep(0.4)  # the dialog is deaf for a moment, on purpose
    terminal.press("y")
    served.wait_state("demo-1", "DRAINING")
    # Not "draining 0s": while the answer is on its way the row takes no other key.
    terminal.shows("draining ▽")
    terminal.press("D")
    served.wait_state("demo-1", "READY")
    terminal.shows("2/2 ready")


def test_read_only_is_the_daemons_word_too(served: Box, attach: Attach) -> None:
    terminal = attach("--read-only")
    terminal.shows("RO")
    terminal.press("r")
    terminal.shows("attached read-only")
    terminal.press("q")
    restored(terminal)
    assert served.replica("demo-0")["state"] == "READY"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(attach: Attach, number: signal.Signals) -> None:
    terminal = attach()
    terminal.shows("2/2 ready")
    assert terminal.flag("alternate_on") == "1"
    os.kill(terminal.program(), number)
    terminal.shows(f"rc={128 + number}")
    restored(terminal)


def test_a_crash_leaves_the_terminal_as_it_was_and_the_daemon_alone(served: Box, attach: Attach) -> None:
    """A mistake in the handler of a key. What went wrong is told on the shell's screen."""
    mistake = "from gpuserve_tui import app, main; app.FleetApp.switch_theme = lambda app: {}['no such theme']; main.main()"
    terminal = attach(command=(sys.executable, "-c", mistake))
    terminal.shows("2/2 ready")
    assert terminal.flag("alternate_on") == "1"
    terminal.press("T")
    terminal.shows("KeyError: 'no such theme'")
    restored(terminal)
    assert {row["state"] for row in served.look()["replicas"]} == {"READY"}


@pytest.mark.parametrize(
    ("term", "env"),
    [("screen", {}), ("xterm-256color", {"NO_COLOR": "1"}), ("tmux-256color", {"LANG": "C", "LC_ALL": "C"})],
    ids=["screen", "no-color", "lang-c"],
)
def test_other_terminals(attach: Attach, term: str, env: dict[str, str]) -> None:
    terminal = attach(term=term, size=(80, 24), **env)
    terminal.shows("2/2 ready")
    terminal.shows("demo-0")
    terminal.resize(60, 16)
    terminal.shows("ALL")
    terminal.press("?")
    terminal.shows("Keys")
    terminal.press("q")
    terminal.shows("Keys", absent=True)
    terminal.press("q")
    restored(terminal)


@pytest.mark.parametrize(
    ("size", "term"), [((0, 0), "xterm-256color"), ((24, 80), "dumb")], ids=["0x0", "dumb"]
)
def test_a_terminal_whose_size_is_told_twice_takes_keys(
    served: Box, size: tuple[int, int], term: str
) -> None:
    """Two libraries guess differently where a terminal says 0x0, or that it is dumb: the screen is laid out for one of them."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    environment = served.env | {"TERM": term, "LANG": "C.UTF-8"}
    program = subprocess.Popen(
        [*TUI], env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    try:
        deadline = time.monotonic() + 60
        while b"2/2" not in shown:
            assert time.monotonic() < deadline, shown[-500:]
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65536)
        os.write(ours, b"q")
        with contextlib.suppress(OSError):  # the program has closed the other end
            while select.select([ours], [], [], 60)[0] and os.read(ours, 65536):
                continue
        assert program.wait(60) == 0
    finally:
        program.kill()
        program.wait()
        os.close(ours)


def test_without_a_terminal_on_stderr_it_says_so(served: Box, attach: Attach) -> None:
    """Textual draws on stderr: redirected, the screen would fill a file."""
    done = subprocess.run(
        [*TUI],
        env=served.env,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr
    del attach


def test_the_daemons_figures_reach_a_script(served: Box) -> None:
    """The same data without a screen: real figures of real requests."""

    def figures() -> Json | None:
        served.ok(
            "chat", "--model", "demo", "hello there"
        )  # again and again: figures are of the last seconds
        load: Json | None = json.loads(served.ok("top", "--once", "--json"))["load"]
        return load if load and load["ttft_p95_s"] and load["generation_tokens_per_s"] else None

    load = until(figures, "figures of these requests", 60)
    assert load["generation_tokens_per_s"] > 0
    assert load["itl_p50_s"] > 0


def test_the_daemon_refuses_what_was_decided_on_another_start(served: Box) -> None:
    client = ControlClient(served.roots.control_socket)
    generation = served.replica("demo-0")["generation"]
    stale = ReplicasRequest(replicas=["demo-0", "demo-1"], replica_generations={"demo-0": generation + 1})
    with pytest.raises(Conflict, match="nothing was done"):
        client.act("drain", stale)
    assert {served.replica(name)["state"] for name in ("demo-0", "demo-1")} == {"READY"}
    served.ok("drain", "demo-0")
    served.wait_state("demo-0", "DRAINING")
    served.ok("undrain", "demo-0")
    served.wait_state("demo-0", "READY")
    detail = client.detail("demo-0")
    assert "serve" in detail.command
    assert [change.state for change in detail.history][-2:] == ["DRAINING", "READY"]
    assert client.profile_diff("demo").changes[0].action == "keep"


def test_a_flood_of_log_lines_freezes_nothing(box: Box, attach: Attach) -> None:
    """50,000 lines a second into the daemon's files: the screen answers keys, and says how many it left out."""
    box.up({"flood": PROFILE.replace("replicas = 2", "replicas = 1") + "log_flood = 50000\n"})
    terminal = attach(size=(120, 36), GPUSERVE_ROOT=str(box.root))
    terminal.shows("1/1 ready")
    terminal.press("l")
    terminal.shows("LOG flood-0")
    until(
        lambda: re.search(r"\d,\d{3},\d{3} dropped|[1-9]\d\d,\d{3} dropped", terminal.text),
        "100,000 lines are counted",
        60,
    )
    for key, answer in (("3", "GPU / replica / process"), ("4", "LOG flood-0"), ("2", "TTFT p50/p95")):
        terminal.press(key)
        terminal.shows(answer)
    assert box.replica("flood-0")["state"] == "READY"
