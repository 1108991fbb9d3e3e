"""A terminal of tmux: keys go in, lines come out, as at a desk."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path


class Terminal:
    """One tmux server with one window, apart from any other."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], size: tuple[int, int] = (100, 30), term: str = "tmux-256color") -> None:  # fmt: skip
        self._name = f"gpuserve-{uuid.uuid4().hex[:8]}"
        words = " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items())
        line = shlex.join(command)
        # The shell stays after the program, so that the state it leaves the terminal in can be looked at.
        script = f"env -i {words} TERM={term} {line}; echo rc=$?; stty -a; exec sh"
        self.tmux("new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), "sh", "-c", script)

    def tmux(self, *arguments: str) -> str:
        """A tmux command of this server."""
        environment = {k: v for k, v in os.environ.items() if k not in {"TMUX", "TMUX_PANE"}}
        done = subprocess.run(
            ["tmux", "-L", self._name, "-f", "/dev/null", *arguments],
            capture_output=True, text=True, timeout=60, check=False, env=environment | {"LANG": "C.UTF-8"},
        )  # fmt: skip
        return done.stdout

    @property
    def text(self) -> str:
        """What is on the screen."""
        return self.tmux("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        """Keys, as tmux calls them."""
        self.tmux("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        """Another size of window."""
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def shows(self, wanted: str, timeout_s: float = 60.0, *, absent: bool = False) -> str:
        """Wait until the screen holds a text, or no longer does."""
        deadline = time.monotonic() + timeout_s
        while (wanted in (text := self.text)) is absent:
            assert time.monotonic() < deadline, f"{wanted!r} {'stays' if absent else 'never came'}:\n{text}"
            time.sleep(0.1)
        return text

    def flag(self, name: str) -> str:
        """One of tmux's own facts about the pane, such as `alternate_on`."""
        return self.tmux("display-message", "-p", f"#{{{name}}}").strip()

    def program(self) -> int:
        """The pid of the program that the shell runs."""
        shell = self.tmux("display-message", "-p", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def close(self) -> None:
        """End the server and all in it."""
        self.tmux("kill-server")
