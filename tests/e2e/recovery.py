"""How soon a crash is out of rotation, and full capacity is back, against what a warm start takes anyway.

`make recovery` measures both on the look-alike with the load time of a small model and on the real vLLM, with the settings that
profiles have by default (probes every second, a first back-off of 1 s), and prints what was asked and what was measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fetch import cpu_model, revision
from tests.e2e.box import REPOSITORY, Box, Json, kill, until
from tests.e2e.clients import PlainLoad
from tests.e2e.strikes import RotationWatch
from tests.e2e.texts import SERVED, VLLM_PYTHON, make_model, sim, vllm_profile
from tests.records import put_between

DETECT_S = 1.0
OVER_WARM = 1.2
MARKS = ("<!-- recovery: written by make recovery RECORD=docs/reliability.md -->", "<!-- /recovery -->")
VICTIM = "tiny-0"
TABLES: Mapping[str, Mapping[str, object]] = {"restart": {"budget": 100}}
"""Everything else as it is by default; the budget is not the question here."""
BLOWS: Mapping[str, Callable[[Box, Json], float]] = {
    "API process": lambda _box, row: kill(row["pid"], signal.SIGKILL),
    "EngineCore": lambda box, row: kill(box.engine_core(row).pid, signal.SIGKILL),
}


@dataclass
class Crashes:
    """What each crash of one kind took, in seconds."""

    detect_s: list[float] = field(default_factory=list)
    """From the death of the process until the router did not choose the replica any more."""
    recover_s: list[float] = field(default_factory=list)
    """From there until the replica was READY and chosen again."""
    warm_s: list[float] = field(default_factory=list)
    """Just before, from the start of the process until READY, asked for by `restart`: the caches are warm, and no crash is held
    against the replica (the second in a row waits twice as long)."""

    @property
    def ratios(self) -> list[float]:
        """Each recovery over the warm start before it."""
        return [took / warm for took, warm in zip(self.recover_s, self.warm_s, strict=True)]


@dataclass
class Figures:
    """One engine's."""

    engine: str
    crashes: dict[str, Crashes] = field(default_factory=lambda: {name: Crashes() for name in BLOWS})
    answered: int = 0
    failed: int = 0

    @property
    def missed(self) -> bool:
        """Whether any round was over what is promised."""
        late = any(max(each.detect_s) > DETECT_S for each in self.crashes.values())
        return late or self.failed > 0 or any(max(each.ratios) > OVER_WARM for each in self.crashes.values())

    def rows(self) -> list[str]:
        """Asked and measured, in Markdown."""
        found = []
        for kind, crashes in self.crashes.items():
            asked = f"| {self.engine} | kill -9 of the {kind}"
            found.append(
                f"{asked}: out of rotation | at most {DETECT_S:g} s | {_spread(crashes.detect_s, ' s')} |"
            )
            found.append(
                f"{asked}: full capacity over a warm start | at most {OVER_WARM:g} | {_spread(crashes.ratios)}: "
                f"{_spread(crashes.recover_s, ' s')} over {_spread(crashes.warm_s, ' s')} |"
            )
        found.append(
            f"| {self.engine} | requests that failed | 0 | {self.failed} of {self.answered + self.failed} |"
        )
        return found


def _spread(values: Sequence[float], unit: str = "") -> str:
    middle = f"{statistics.median(values):.2f}{unit}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def capacity_back(box: Box, before: Json, timeout_s: float) -> Json:
    """Wait until the replica of the row `before` runs as a later process, READY and chosen."""
    row = box.wait_restarted(before, timeout_s)
    return box.wait_state(row["id"], "READY", timeout_s, rotation="in")


def warm_start_s(box: Box, timeout_s: float) -> float:
    """One `restart` of the victim."""
    before = box.replica(VICTIM)
    box.ok("restart", VICTIM, timeout_s=timeout_s)
    after = capacity_back(box, before, timeout_s)
    return float(after["state_since"] - after["started_at"])


def crash(box: Box, kind: str, into: Crashes, timeout_s: float) -> None:
    """Kill one process of the victim, and wait for its successor."""
    before = box.replica(VICTIM)
    with RotationWatch(box, VICTIM).watching() as watch:
        at = BLOWS[kind](box, before)
        into.detect_s.append(watch.seconds_after(at))
    capacity_back(box, before, timeout_s)
    into.recover_s.append(time.monotonic() - at)


def measure(box: Box, engine: str, profile: str, rounds: int, timeout_s: float) -> Figures:
    """A warm start and a crash of each kind in turn, under a light load; the box is up when this returns."""
    box.up({SERVED: profile}, wait_s=2 * timeout_s)
    figures = Figures(engine)
    load = PlainLoad(box.endpoint, SERVED)
    with load:
        until(lambda: box.rotation(VICTIM) == "in", "chosen", 60)
        for _ in range(rounds):
            for kind, crashes in figures.crashes.items():
                crashes.warm_s.append(warm_start_s(box, timeout_s))
                crash(box, kind, crashes, timeout_s)
    figures.answered, figures.failed = load.answered, len(load.failures)
    return figures


def sim_profile(load_s: float) -> str:
    """Two look-alikes that load so long."""
    return sim(SERVED, replicas=2, flags={"load_s": load_s}, tables=TABLES)


def of_sim(load_s: float, rounds: int) -> Figures:
    """The look-alike, in a root of its own that is gone afterwards."""
    box = Box()
    try:
        return measure(box, f"look-alike, loads {load_s:g} s", sim_profile(load_s), rounds, 120)
    finally:
        box.close()


def of_vllm(rounds: int) -> Figures:
    """The real engine, likewise."""
    box = Box()
    try:
        profile = vllm_profile(make_model(box.top / "model"), SERVED, {}, tables=TABLES)
        return measure(box, "vLLM, CPU build", profile, rounds, 240)
    finally:
        box.close()


def report(found: Sequence[Figures], rounds: int) -> str:
    """Where it was measured, and the table."""
    setting = (
        f"Revision {revision(REPOSITORY)}, {time.strftime('%Y-%m-%d')}, {cpu_model()}, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}: median and range of {rounds} rounds."
    )
    head = ["| engine | | asked | measured |", "| --- | --- | --- | --- |"]
    return "\n".join([setting, "", *head, *(row for one in found for row in one.rows())])


def main() -> int:
    """Measure, print, record; 1 where a promise was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load-s", type=float, default=15.0, help="load time of the look-alike")
    parser.add_argument("--record", type=Path, metavar="PAGE", help="write the table into this page, too")
    options = parser.parse_args()
    found = [of_sim(options.load_s, options.rounds)]
    if VLLM_PYTHON:
        found.append(of_vllm(options.rounds))
    else:
        print(
            "NOT MEASURED ON THE REAL VLLM: there is no .venv-vllm; `make test-vllm` makes one",
            file=sys.stderr,
        )
    text = report(found, options.rounds)
    print(text)
    if options.record:
        put_between(options.record, MARKS, text)
    missed = [one.engine for one in found if one.missed]
    print(f"missed on: {', '.join(missed)}" if missed else "every promise kept", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
