"""The fault switches as flags of `serve`."""

from __future__ import annotations

import argparse
from typing import Any

from gpuserved.engines.sim.faults import BAD_METRICS_KINDS, FAIL_LOAD_KINDS, GARBAGE_KINDS

_SWITCH: dict[str, Any] = {"action": "store_true"}
_SECONDS: dict[str, Any] = {"type": float, "metavar": "S"}
_COUNT: dict[str, Any] = {"type": int, "metavar": "N"}
_TEXT: dict[str, Any] = {"metavar": "TEXT"}

_GROUPS: tuple[tuple[str, tuple[tuple[str, dict[str, Any], str], ...]], ...] = (
    ("faults while starting", (
        ("fail-load", {"choices": FAIL_LOAD_KINDS}, "die while loading, with vLLM's log lines and exit status"),
        ("crash-after-load", _SWITCH, "load, then crash instead of listening"),
        ("slow-start-stall-s", {**_SECONDS, "default": 0.0}, "stand still for S seconds halfway through loading"),
    )),
    ("crashes", (
        ("crash-after-s", _SECONDS, "crash S seconds after the start of serving"),
        ("crash-after-requests", _COUNT, "crash when generating request N arrives"),
        ("crash-on-prompt", _TEXT, "a prompt that holds TEXT kills the engine"),
        ("crash-process", {"choices": ("api", "engine")}, "which process crashes (api; engine for --crash-on-prompt)"),
        ("crash-exit-code", _COUNT, "exit code of a crash, negative for a signal (1)"),
        ("die-mid-stream-after-tokens", _COUNT, "crash once a stream has sent N tokens"),
    )),
    ("hangs", (
        ("engine-hang-after-s", _SECONDS, "the engine stops stepping with the first requests it runs after S seconds"),
        ("engine-hang-on-prompt", _TEXT, "the engine stops stepping after the first token of a prompt that holds TEXT"),
        ("health-flap", _SECONDS, "/health answers 200 for S seconds, 503 for S seconds, and so on"),
        ("health-hang-after-s", _SECONDS, "/health accepts and does not answer after S seconds"),
        ("stall-after-bytes", _COUNT, "generating responses stop after N bytes of body and stay open"),
        ("stall-after-tokens", _COUNT, "streams stop after N tokens and stay open; the engine goes on"),
        ("accept-never-answer", _SWITCH, "requests that generate get no answer at all"),
        ("ignore-sigterm", _SWITCH, "SIGTERM and SIGINT do nothing"),
    )),
    ("bad output and leftovers", (
        ("garbage-response", {"choices": GARBAGE_KINDS}, "generating routes answer with broken HTTP"),
        ("bad-metrics", {"choices": BAD_METRICS_KINDS}, "/metrics is of no use"),
        ("log-flood", {"type": float, "metavar": "N"}, "N log lines a second"),
        ("escape-child", _SWITCH, "start a process that leaves session and group and outlives all"),
        ("shm-leak", _SWITCH, "keep psm_* and sem.mp-* files mapped and leave them in /dev/shm"),
    )),
)  # fmt: skip


def add_fault_flags(parser: argparse.ArgumentParser) -> None:
    """Add one group of flags for each class of faults."""
    for title, rows in _GROUPS:
        group = parser.add_argument_group(title)
        for name, how, text in rows:
            group.add_argument("--" + name, help=text, **how)
