"""What a check finds, and how all of them run at once without one that hangs holding up the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from gpuserved.api.errors import GpuserveError
from gpuserved.api.roots import Roots
from gpuserved.config.daemon import DaemonConfig, find_config, load_daemon_config

OK, WARN, FAIL = "ok", "warn", "fail"
DEADLINE_S = 6.0
"""Of all checks together; what has not answered by then is reported as such. On a loaded host everything
takes seconds; a driver that hangs, hangs for ever."""
GIB = 1024**3


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One fact."""

    check: str
    level: str
    """ok, warn or fail."""
    fact: str
    fix: str | None = None
    """A command, or what to do where no command does it; None where nothing is wrong."""


@dataclass(frozen=True)
class Host:
    """What the checks look at."""

    env: Mapping[str, str]
    roots: Roots
    socket: Path
    """Where a daemon would be."""

    @cached_property
    def config(self) -> DaemonConfig:
        """The daemon's file, or the defaults where it is wrong: the check of the configuration says that."""
        try:
            return load_daemon_config(find_config(self.roots))
        except GpuserveError:
            return DaemonConfig()

    @property
    def profiles(self) -> list[Path]:
        """The operator's own profiles."""
        folder = self.roots.config / "profiles"
        return sorted(folder.glob("*.toml")) if folder.is_dir() else []


Check = Callable[[Host], list[Finding]]


def ok(check: str, fact: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, level=OK, fact=fact)


def warn(check: str, fact: str, fix: str) -> Finding:
    """Works, and may not go on to."""
    return Finding(check=check, level=WARN, fact=fact, fix=fix)


def fail(check: str, fact: str, fix: str) -> Finding:
    """Something will not work."""
    return Finding(check=check, level=FAIL, fact=fact, fix=fix)


def run_all(checks: Sequence[tuple[str, Check]], host: Host, deadline_s: float = DEADLINE_S) -> list[Finding]:
    """All findings, in the order of the checks. A check that breaks, or is late, is a finding too."""
    found: dict[str, list[Finding]] = {}
    threads = []
    for name, check in checks:
        # Daemon threads: one that hangs in a driver must not keep the process from ending.
        thread = threading.Thread(target=_run, args=(name, check, host, found), daemon=True)
        thread.start()
        threads.append(thread)
    end = time.monotonic() + deadline_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    findings: list[Finding] = []
    for name, _ in checks:
        late = warn(
            name,
            f"no answer within {deadline_s:g} s",
            "run gpuserve doctor again; if it stays, look at dmesg",
        )
        findings += found.get(name, [late])
    return findings


def _run(name: str, check: Check, host: Host, found: dict[str, list[Finding]]) -> None:
    try:
        found[name] = check(host)
    except Exception as error:
        found[name] = [
            warn(name, f"could not be checked: {type(error).__name__}: {error}", "report this, with the text")
        ]


def gib(size: float) -> str:
    """`12.3 GiB`."""
    return f"{size / GIB:.1f} GiB"
