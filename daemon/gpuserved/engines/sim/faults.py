"""The fault switches: what may go wrong with a replica, on request.

Each is a flag of `serve`; a faults file gives them to single replicas or generations without touching their command line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAIL_LOAD_KINDS = (
    "oom",
    "killed",
    "bad-flag",
    "missing-model",
    "hub",
    "kv-too-small",
    "port-in-use",
    "engine",
)
GARBAGE_KINDS = ("bad-chunk", "short-body", "long-body", "huge-header", "not-http", "truncated-chunked")
BAD_METRICS_KINDS = ("malformed", "huge", "nan", "duplicate", "endless")


@dataclass(frozen=True)
class Faults:
    """None, 0 and False: the fault is off."""

    fail_load: str | None = None
    crash_after_load: bool = False
    slow_start_stall_s: float = 0.0
    crash_after_s: float | None = None
    crash_after_requests: int | None = None
    crash_on_prompt: str | None = None
    crash_process: str | None = None
    """`api` or `engine`; None: what the crash would hit in real life."""
    crash_exit_code: int | None = None
    """Negative: the signal that ends it."""
    die_mid_stream_after_tokens: int | None = None
    engine_hang_after_s: float | None = None
    engine_hang_on_prompt: str | None = None
    health_flap: float | None = None
    health_hang_after_s: float | None = None
    stall_after_bytes: int | None = None
    stall_after_tokens: int | None = None
    accept_never_answer: bool = False
    garbage_response: str | None = None
    bad_metrics: str | None = None
    log_flood: float | None = None
    ignore_sigterm: bool = False
    escape_child: bool = False
    shm_leak: bool = False
    step_jitter: float = 0.0


class BadFaultsFile(Exception):
    """The faults file cannot be used; the message says why."""


def overrides(path: str, env: Mapping[str, str]) -> list[str]:
    """The flags that a faults file adds for this start.

    The file maps `REPLICA`, `REPLICA@GENERATION` or `*` to {flag: value}; the more exact key wins. The replica is
    GPUSERVE_REPLICA, the generation GPUSERVE_GENERATION.

    :raises BadFaultsFile: unreadable, not JSON, not of that shape.
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFaultsFile(f"{path}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise BadFaultsFile(f'{path}: expected {{"REPLICA": {{"flag": value}}}}')
    replica = env.get("GPUSERVE_REPLICA", "")
    merged: dict[str, Any] = {}
    for key in ("*", replica, f"{replica}@{env.get('GPUSERVE_GENERATION', '')}"):
        merged.update(content.get(key, {}))
    return as_arguments(merged)


def as_arguments(flags: Mapping[str, Any]) -> list[str]:
    """{flag: value} as command line arguments. True is a bare flag, False none at all."""
    argv: list[str] = []
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            argv.append(flag)
        elif value is not False:
            argv.append(f"{flag}={value}")
    return argv


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
