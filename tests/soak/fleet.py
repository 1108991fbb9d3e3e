"""`make soak`: a whole fleet under load and random faults, ten a minute, and what it must look like afterwards."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fetch import revision
from tests.e2e.box import REPOSITORY, tail, until
from tests.interrupted import interruptible
from tests.records import keep
from tests.soak.blows import Blows, zombies
from tests.soak.figures import fd_count, pss_bytes
from tests.soak.judge import Point, fleet_complaints, grown
from tests.soak.load import Client, Outcomes
from tests.soak.stage import MODEL, Stage

SAMPLE_S = 5.0
REST_S = 90.0
"""How long after the last client and the last blow the fleet may take to be at rest."""
QUIET_END_S = 15.0
"""No blow in the last seconds of the load: its clients end in peace."""
ROUTER_DEATH_S = 3.0
"""A request that breaks within this time of a router's death was that router's own."""
TOKENS = (5, 40)


@dataclass
class Soak:
    """One run."""

    stage: Stage
    options: argparse.Namespace
    outcomes: Outcomes = field(default_factory=Outcomes)
    samples: list[Point] = field(default_factory=list)
    zombies_seen: Counter[int] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    at: str = field(default_factory=lambda: revision(REPOSITORY))
    """The revision that it began with: the checkout may move on while it runs."""

    def __post_init__(self) -> None:
        self.blows = Blows(self.stage, self.options.seed)

    async def run(self) -> None:
        """Load, blows and samples for the time given."""
        self.begun = time.monotonic()
        stop = asyncio.Event()
        clients = [
            Client(self.stage.box.port, MODEL, TOKENS, self.options.seed * 100_000 + n, self.outcomes)
            for n in range(self.options.clients)
        ]
        load = [asyncio.ensure_future(client.run(stop)) for client in clients]
        others = [asyncio.ensure_future(self._sample()), asyncio.ensure_future(self._strike())]
        done, _ = await asyncio.wait(
            others, timeout=self.options.seconds, return_when=asyncio.FIRST_EXCEPTION
        )
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        stop.set()
        await asyncio.gather(*load)
        for other in done:
            other.result()

    async def _strike(self) -> None:
        """Ten a minute on average: a third of them close together, as troubles come."""
        chance = random.Random(self.options.seed)
        pause_s = 60.0 / self.options.per_minute
        due = time.monotonic() + 5
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += pause_s * chance.choice((0.3, 1.0, 1.7))
            if self._at() > self.options.seconds - QUIET_END_S:
                await asyncio.sleep(3600)
            struck = await asyncio.to_thread(self.blows.strike)
            self.said.append(f"[{self._at():5.0f} s] {struck}")
            print(self.said[-1], flush=True)

    def _at(self) -> float:
        return time.monotonic() - self.begun

    async def _sample(self) -> None:
        while True:
            point = await asyncio.to_thread(self._point)
            if point is not None:
                self.samples.append(point)
                if len(self.samples) % 12 == 1:
                    print(self._line(point), flush=True)
            await asyncio.sleep(SAMPLE_S)

    def _point(self) -> Point | None:
        """Memory and descriptors by role; None where a process of ours went while it was looked at."""
        processes = self.stage.own_processes()
        for pid in zombies([pid for pids in processes.values() for pid in pids]):
            self.zombies_seen[pid] += 1
        try:
            memory = {role: [pss_bytes(pid) for pid in pids] for role, pids in processes.items()}
            fds = {role: sum(fd_count(pid) for pid in pids) for role, pids in processes.items()}
        except OSError:
            return None
        shims = memory["shims"]
        return Point(
            at_s=self._at(),
            pss_bytes={
                "supervisor": sum(memory["supervisor"]), "routers": sum(memory["routers"]),
                "a shim, at most": max(shims, default=0),
            },
            fds={"supervisor": fds["supervisor"], "routers": fds["routers"]},
            routers=len(processes["routers"]),
        )  # fmt: skip

    def _line(self, point: Point) -> str:
        shown = "  ".join(f"{role} {value / 1e6:.1f} MB" for role, value in point.pss_bytes.items())
        return f"[{point.at_s:5.0f} s] {shown}  fds {point.fds}  {dict(self.outcomes.count)}"

    # --- afterwards

    def rest(self) -> list[str]:
        """What is wrong once everybody has gone home."""
        wrong = self._refused_elsewhere()
        self.stage.quiet()
        try:
            until(self._calm, "in-flight counts are back to 0", REST_S, every_s=0.5)
        except AssertionError as late:
            wrong.append(f"{late}: {self.stage.look()['router']}, {self._busy()}")
        rows = self.stage.rows()
        folders = self.stage.run_folders()
        if len(folders) != len(rows):
            wrong.append(f"{len(folders)} run folders of {len(rows)} replicas")
        leased = sorted(name for names in self.stage.leases().values() for name in names)
        mine = sorted(row["id"] for row in rows if row["profile"] == "paper")
        if leased != mine:
            wrong.append(f"leases of {leased}, and {mine} run")
        stuck = [pid for pid, seen in self.zombies_seen.items() if seen > 1 and _is_zombie(pid)]
        wrong += [f"zombie {pid}" for pid in stuck]
        wrong += fleet_complaints(self.samples)
        return wrong + self._after_down()

    def _calm(self) -> bool:
        router = self.stage.look()["router"]
        return not router["in_flight"] and not router["queued"] and not self._busy()

    def _busy(self) -> dict[str, Any]:
        return {
            row["id"]: (row["in_flight"], row["running"], row["waiting"])
            for row in self.stage.rows()
            if row["in_flight"] or row["running"] or row["waiting"]
        }

    def _refused_elsewhere(self) -> list[str]:
        """Lost requests, without those that died with their router."""
        count = self.outcomes.count
        own = [
            at
            for at, _ in self.outcomes.broken
            if any(-0.5 <= at - died <= ROUTER_DEATH_S for died in self.blows.routers_died)
        ]
        self.lost_with_router = len(own)
        wrong = []
        if count["lost"] - len(own):
            wrong.append(f"{count['lost'] - len(own)} requests were lost")
        if count["refused"]:
            wrong.append(f"{count['refused']} requests were refused")
        if not count["whole"]:
            wrong.append("not one request was answered")
        return wrong

    def _after_down(self) -> list[str]:
        box = self.stage.box
        self.stage.down()
        sockets = [str(path) for path in box.roots.run.rglob("*") if path.is_socket()]
        left = [*box.alive(), *box.left_in_shared_memory(), *map(str, self.stage.run_folders()), *sockets]
        held = [names for names in self.stage.leases().values() if names]
        return [f"left after down: {what}" for what in [*left, *map(str, held)]]


def _is_zombie(pid: int) -> bool:
    try:
        return b") Z" in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def report(soak: Soak, wrong: list[str], seconds: float) -> str:
    """The run in Markdown."""
    options, count = soak.options, soak.outcomes.count
    setting = (
        f"Revision {soak.at}, {os.cpu_count()} CPUs, load average {os.getloadavg()[2]:.1f} over the last 15 minutes. "
        f"`make soak SECONDS={options.seconds:g}`: {options.clients} clients, 5 replicas (`sim`, a token every {options.step_ms:g} ms; "
        f"two of them on leased GPUs), 2 routers, {sum(soak.blows.count.values())} faults, {options.per_minute:g} a minute asked for, "
        f"seed {options.seed}."
    )
    memory = [
        f"| memory of {role} (PSS) after the warm-up | median {statistics.median(values) / 1e6:.1f} MB, grown by {growth / 1e6:+.2f} MB, "
        f"may grow by {limit / 1e6:.2f} MB |"
        for role, values, growth, limit in grown(soak.samples)
    ]
    step = max(1, len(soak.samples) // 20)
    table = [
        f"| {p.at_s:.0f} | " + " | ".join(f"{value / 1e6:.1f}" for value in p.pss_bytes.values())
        + f" | {p.fds['supervisor']} | {p.fds['routers']} |"
        for p in soak.samples[::step]
    ]  # fmt: skip
    return "\n".join(
        [
            f"# Soak of the fleet, {time.strftime('%Y-%m-%d')}", "", setting, "",
            f"**{'Failed: ' + '; '.join(wrong) if wrong else 'Passed.'}**", "",
            "| | |", "| --- | --- |",
            f"| seconds of load | {seconds:.0f} |",
            f"| requests answered whole | {count['whole']} |",
            f"| streams ended by an error event, their replica gone | {count['told']} |",
            f"| left, reset, or half asked by the client | {count['left']} |",
            f"| lost with the router that had them (it was killed) | {soak.lost_with_router} |",
            f"| lost otherwise, refused | {count['lost'] - soak.lost_with_router}, {count['refused']} |",
            *memory,
            "",
            "| fault | times |", "| --- | --- |",
            *(f"| {name} | {times} |" for name, times in sorted(soak.blows.count.items())),
            "",
            "| s | supervisor MB | routers MB | a shim, at most, MB | supervisor fds | routers fds |",
            "| --- | --- | --- | --- | --- | --- |",
            *table, "",
        ]
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """0: passed; 1: what was wrong is printed."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="length of the load (1800)")
    parser.add_argument("--per-minute", type=float, default=10.0, help="faults (10)")
    parser.add_argument("--clients", type=int, default=24, help="clients (24)")
    parser.add_argument(
        "--step-ms", type=float, default=40.0, help="time between two tokens of a stream (40)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", metavar="FILE", type=Path, help="write the report there")
    options = parser.parse_args(argv)
    soak = Soak(Stage(options.step_ms), options)
    try:
        soak.stage.up()
        asyncio.run(soak.run())
        seconds = time.monotonic() - soak.begun
        wrong = soak.rest()
        text = report(soak, wrong, seconds)
        if wrong:
            print(tail(soak.stage.box.top / "daemon.out", 60))
    finally:
        soak.stage.close()
    print("\n" + text)
    print("\n".join(soak.outcomes.complaints))
    keep(options.record, text)
    print(f"===== soak {'failed' if wrong else 'passed'} in {options.seconds:g} s =====")
    return 1 if wrong else 0


if __name__ == "__main__":
    with interruptible():
        sys.exit(main(sys.argv[1:]))
