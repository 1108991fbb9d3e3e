"""Log lines as vLLM writes them: on stdout, with process, pid, level, time and source line."""

from __future__ import annotations

import os
import sys
import time

BANNER = (
    "",
    "       █     █     █▄   ▄█",
    " ▄▄ ▄█ █     █     █ ▀▄▀ █  version {version}",
    "  █▄█▀ █     █     █     █  model   {model}",
    "   ▀▀  ▀▀▀▀▀ ▀▀▀▀▀ ▀     ▀",
    "",
)


class Log:
    """The log of one process.

    :param process: `APIServer`, `EngineCore`, `Worker_TP0`.
    """

    def __init__(self, process: str) -> None:
        self._process = process

    def line(self, level: str, source: str, text: str) -> None:
        """One line, flushed: what is on screen when a process dies is what there was to read."""
        stamp = time.strftime("%m-%d %H:%M:%S")
        out = f"({self._process} pid={os.getpid()}) {level} {stamp} [{source}] {text}\n"
        write(out)

    def say(self, source: str, text: str) -> None:
        """INFO."""
        self.line("INFO", source, text)

    def alert(self, source: str, text: str) -> None:
        """WARNING."""
        self.line("WARNING", source, text)

    def complain(self, source: str, text: str) -> None:
        """ERROR."""
        self.line("ERROR", source, text)

    def traceback(self, source: str, frames: tuple[tuple[str, str, str], ...], error: str) -> None:
        """A traceback with each line under the prefix; frames are (file:line, function, code)."""
        self.complain(source, "Traceback (most recent call last):")
        for place, function, code in frames:
            path, line = place.split(":")
            self.complain(source, f'  File "vllm/{path}", line {line}, in {function}')
            self.complain(source, f"    {code}")
        self.complain(source, error)


def write(text: str) -> None:
    """To stdout in one write, so that lines of several processes do not mix."""
    try:
        sys.stdout.flush()
        os.write(1, text.encode())
    except OSError:
        pass  # nobody reads the log; vLLM's logger swallows that too


def bare(text: str) -> None:
    """A line on stderr without prefix: tracebacks, argparse, uvicorn."""
    try:
        os.write(2, (text + "\n").encode())
    except OSError:
        pass


def plain_traceback(frames: tuple[tuple[str, str, str], ...], error: str) -> None:
    """A traceback on stderr."""
    bare("Traceback (most recent call last):")
    for place, function, code in frames:
        path, line = place.split(":")
        bare(f'  File "vllm/{path}", line {line}, in {function}')
        bare(f"    {code}")
    bare(error)
