"""One candidate's turn: start it, run every phase of load, read its CPU time and memory, stop it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.candidates import Candidate, Setting
from benchmarks.measure import CpuTime, cpu_time, hurry, pss_bytes, tree
from benchmarks.process import Started, start, stop

REPLICAS = 4
STEP_MS = 10
STREAM_TOKENS = 128
PACED_STREAMS = 256
_NICE = -15

Figures = dict[str, float | None]
Round = dict[str, Figures]
"""Figures by candidate."""


@dataclass(frozen=True)
class Phase:
    """One kind of load."""

    name: str
    connections: int
    warm_s: float
    measured_s: float
    tokens: int = 0
    pace_ms: int = 0
    urgent: bool = False
    """At a high priority, where this user may: what else runs on the machine would be measured, and a proxy that is
    kept from its core reads several chunks at once, which flatters its CPU time."""


def phases(seconds: float, only: list[str] | None) -> list[Phase]:
    """The phases of a turn."""
    every = [
        Phase("plain", 64, 0.5, seconds, urgent=True),
        Phase("paced", PACED_STREAMS, 1.5, seconds, STREAM_TOKENS, STEP_MS, urgent=True),
        Phase("fast", 64, 0.5, seconds, STREAM_TOKENS),
        Phase("single", 1, 0.2, 1.0, urgent=True),
        Phase("first", 1, 0.2, 1.0, tokens=16, urgent=True),
        Phase("open", 1000, 1.5, 1.0, tokens=1000, pace_ms=1000),
    ]
    unknown = set(only or ()) - {phase.name for phase in every}
    if unknown:
        sys.exit(f"unknown phases: {', '.join(sorted(unknown))}")
    return [phase for phase in every if only is None or phase.name in only]


class Arena:
    """The replicas, and a place to run candidates in front of them."""

    def __init__(
        self, folder: Path, programs: dict[str, Path], proxy_core: int, load_cores: list[int], policy: str
    ) -> None:
        self._folder = folder
        self._client = programs["client"]
        self._proxy_core = proxy_core
        self._load_cores = load_cores
        self._policy = policy
        backend = [str(programs["backend"]), str(folder), str(REPLICAS), str(STEP_MS)]
        self._backend = start(backend, load_cores, batch=True, stdout=subprocess.PIPE)
        assert self._backend.stdout is not None
        self._ports: list[int] = json.loads(self._backend.stdout.readline())["ports"]

    def close(self) -> None:
        """Stop the replicas."""
        stop(self._backend)

    def measure(self, candidate: Candidate, plan: list[Phase]) -> Figures:
        """A whole turn.

        :raises Missing: the candidate is not to be had, or does not start.
        """
        with tempfile.TemporaryDirectory(prefix="c-", dir=self._folder) as own:
            setting = Setting(
                Path(own), [self._folder / f"r{i}.sock" for i in range(REPLICAS)], self._ports, self._policy
            )
            running = candidate.start(setting, self._proxy_core)
            try:
                figures: Figures = {}
                for phase in plan:
                    figures.update(self._phase(phase, running))
                return figures
            finally:
                if running.process is not None:
                    stop(running.process)

    def _phase(self, phase: Phase, running: Started) -> Figures:
        pids = [] if running.process is None else tree(running.process.pid)
        everyone = [*pids, self._backend.pid]
        argv = [
            str(self._client), ",".join(map(str, running.ports)), str(phase.connections), str(phase.warm_s),
            str(phase.measured_s), str(phase.tokens), str(phase.pace_ms),
        ]  # fmt: skip
        client = start(
            argv,
            self._load_cores,
            batch=phase.connections > 1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            urgent = phase.urgent and hurry([*everyone, client.pid], _NICE)
            assert client.stdout is not None
            begin = client.stdout.readline()
            before = cpu_time(pids)
            end = client.stdout.readline()
            used = cpu_time(pids) - before
            memory = pss_bytes(pids) if pids else None
            said, _ = client.communicate("\n", timeout=30)
            if urgent:
                hurry(everyone, 0)
        finally:
            stop(client)
        if (begin, end) != ("BEGIN\n", "END\n") or client.returncode:
            raise RuntimeError(f"the load of phase {phase.name} broke off: {client.returncode}")
        return _figures(phase, json.loads(said), used if pids else None, memory)


def _figures(phase: Phase, seen: dict[str, object], used: CpuTime | None, memory: int | None) -> Figures:
    """One phase's figures, named PHASE_WHAT_UNIT."""

    def number(name: str) -> float:
        value = seen[name]
        assert isinstance(value, (int, float))
        return float(value)

    figures: Figures = {"errors": number("errors"), "pss_bytes": memory}
    work = number("chunks" if phase.tokens else "requests")
    per_s = work / number("seconds")
    figures["per_s"] = per_s
    if used is not None:
        figures["cpu_us"] = used.used_s / work * 1e6 if work else None
        figures["cpu_pct"] = used.used_s / number("seconds") * 100
        figures["waited_pct"] = used.waited_s / number("seconds") * 100
    if phase.name == "paced":
        figures["kept_pct"] = per_s / (phase.connections * 1000 / phase.pace_ms) * 100
    for name in ("latency_us", "ttft_us", "delay_us"):
        spread = seen[name]
        for key in ("p50", "p99"):
            figures[f"{name[:-3]}_{key}_us"] = float(spread[key]) if isinstance(spread, dict) else None
    return {f"{phase.name}_{name}": value for name, value in figures.items()}
