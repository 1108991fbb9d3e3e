"""`make soak-router`: a real daemon, four look-alike replicas that are killed in turn, 256 streams that come and go."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fetch import revision
from tests.e2e.box import REPOSITORY, Box, kill, tail
from tests.interrupted import interruptible
from tests.records import keep
from tests.soak.figures import fd_count, pss_bytes
from tests.soak.judge import Rest, Sample, complaints, growth_per_s, settled
from tests.soak.load import Client, Outcomes

REPLICAS = 4
SAMPLE_S = 2.0
REST_S = 30.0
"""How long after the last client the router may take to be at rest."""
SETTLE_S = 3.0
MODEL = "soak"


@dataclass
class Soak:
    """One run."""

    box: Box
    options: argparse.Namespace
    outcomes: Outcomes = field(default_factory=Outcomes)
    samples: list[Sample] = field(default_factory=list)
    kills: int = 0
    back: int = 0
    begun: float = field(default_factory=time.monotonic)
    at: str = field(default_factory=lambda: revision(REPOSITORY))
    """The revision that it began with: the checkout may move on while it runs."""

    def start(self) -> None:
        """Daemon and replicas, ready."""
        profile = (
            f'model = "sim/{MODEL}"\nserved_name = "{MODEL}"\nengine = "sim"\nreplicas = {REPLICAS}\nmax_model_len = 4096\n'
            f"[sim]\nload_s = 0.2\nstep_ms = {self.options.step_ms}\nprefill_tok_s = 50000\nkv_cache_tokens = 400000\n"
            "[restart]\nstable_s = 1\nbackoff_s = 0.5\nbudget = 100\n"
        )
        self.box.up({MODEL: profile})

    async def run(self) -> Rest:
        """Load, kills and samples for the time given; then how things are at rest."""
        before = await asyncio.to_thread(self._settled)
        stop = asyncio.Event()
        self.begun = time.monotonic()
        tokens = (10, 50)
        clients = [
            Client(self.box.port, MODEL, tokens, self.options.seed * 100_000 + number, self.outcomes).run(
                stop
            )
            for number in range(self.options.streams)
        ]
        tasks = [asyncio.ensure_future(one) for one in clients]
        others = [asyncio.ensure_future(self._sample()), asyncio.ensure_future(self._kill())]
        await asyncio.sleep(self.options.seconds)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        stop.set()
        await asyncio.gather(*tasks)
        return await asyncio.to_thread(self._rest, before)

    def _settled(self) -> dict[str, Any]:
        """The figures of a router at rest that has everything open which it keeps open: watches, log, control connection."""
        self.box.ok("chat", "--model", MODEL, "--max-tokens", "1", "hello")
        while True:
            before = self._figures()
            time.sleep(SETTLE_S)
            now = self._figures()
            if now["fds"] == before["fds"] and not now["connections"]:
                return now

    def _figures(self) -> dict[str, Any]:
        stats = self.box.router_stats()
        if stats is None:
            raise AssertionError(f"the router does not answer\n{tail(self.box.roots.log / 'router.log')}")
        pid = stats["pid"]
        return {**stats, "fds": fd_count(pid), "pss": pss_bytes(pid)}

    async def _sample(self) -> None:
        while True:
            seen = await asyncio.to_thread(self._figures)
            sample = Sample(
                at_s=time.monotonic() - self.begun, pss_bytes=seen["pss"], fds=seen["fds"],
                connections=seen["connections"], in_flight=seen["in_flight"], requests_total=seen["requests_total"],
            )  # fmt: skip
            self.samples.append(sample)
            if len(self.samples) % 15 == 1:
                print(self.line(sample), flush=True)
            await asyncio.sleep(SAMPLE_S)

    def line(self, sample: Sample) -> str:
        """One sample, for a terminal."""
        return (
            f"[{sample.at_s:5.0f} s] {sample.pss_bytes / 1e6:5.1f} MB  {sample.fds:4} fds  {sample.connections:4} connections  "
            f"{sample.in_flight:4} in flight  {sample.requests_total:7} requests  {self.kills} kills  {dict(self.outcomes.count)}"
        )

    async def _kill(self) -> None:
        """Kill one replica's server after the other; each must come back before the next goes."""
        chance = random.Random(self.options.seed)
        while True:
            await asyncio.sleep(self.options.kill_every_s)
            if time.monotonic() - self.begun > self.options.seconds - 20:
                return  # the last one must have come back when the run ends
            rows = (await asyncio.to_thread(self.box.look))["replicas"]
            row = chance.choice([row for row in rows if row["state"] == "READY"])
            kill(row["pid"])
            self.kills += 1
            await asyncio.to_thread(self.box.wait_restarted, row, 30.0)
            self.back += 1

    def _rest(self, before: dict[str, Any]) -> Rest:
        """Wait until nothing is left, for `REST_S` at most."""
        end = time.monotonic() + REST_S
        while True:
            now = self._figures()
            rows = self.box.look()["replicas"]
            rest = Rest(
                fds_before=before["fds"], fds=now["fds"], connections=now["connections"], in_flight=now["in_flight"],
                queued=now["queued"], pid_before=before["pid"], pid=now["pid"],
                busy_replicas={row["id"]: row["in_flight"] for row in now["replicas"] if row["in_flight"]},
                busy_engines={
                    row["id"]: busy for row in rows if (busy := (row["running"] or 0) + (row["waiting"] or 0))
                },
            )  # fmt: skip
            calm = not (
                rest.connections or rest.in_flight or rest.queued or rest.busy_replicas or rest.busy_engines
            )
            if (calm and rest.fds <= rest.fds_before) or time.monotonic() > end:
                return rest
            time.sleep(0.5)


def explained(soak: Soak) -> list[str]:
    """The complaints, each with what the router's log says of that request."""
    log = (soak.box.roots.log / "router.log").read_text("utf-8", errors="replace").splitlines()
    lines = []
    for complaint in soak.outcomes.complaints:
        request = complaint.rpartition("request ")[2]
        lines += [
            complaint,
            *(f"    {line}" for line in log if request.startswith("soak-") and request in line),
        ]
    return lines


def report(soak: Soak, rest: Rest, wrong: list[str]) -> str:
    """The run in Markdown."""
    options, count = soak.options, soak.outcomes.count
    steady = settled(soak.samples)
    slope = growth_per_s([(one.at_s, one.pss_bytes) for one in steady]) * 60 / 1e3
    middle = statistics.median(one.pss_bytes for one in steady) / 1e6
    setting = (
        f"Revision {soak.at}, {os.cpu_count()} CPUs. `make soak-router SECONDS={options.seconds:g}`: {options.streams} "
        f"clients, {REPLICAS} replicas (`sim`, a token every {options.step_ms:g} ms), a replica killed every "
        f"{options.kill_every_s:g} s, seed {options.seed}."
    )
    rows = [soak.samples[0], *(one for one in soak.samples[1:] if one.at_s >= 1)]
    step = max(1, len(rows) // 20)
    table = [
        f"| {one.at_s:.0f} | {one.pss_bytes / 1e6:.1f} | {one.fds} | {one.connections} | {one.in_flight} | {one.requests_total} |"
        for one in [*rows[::step], rows[-1]]
    ]
    return "\n".join(
        [
            f"# Soak of the router, {time.strftime('%Y-%m-%d')}",
            "",
            setting,
            "",
            f"**{'Failed: ' + '; '.join(wrong) if wrong else 'Passed.'}**",
            "",
            "| | |",
            "| --- | --- |",
            f"| requests answered whole | {count['whole']} |",
            f"| streams ended by an error event, their replica killed | {count['told']} |",
            f"| left, reset, or half asked by the client | {count['left']} |",
            f"| refused | {count['refused']} |",
            f"| lost | {count['lost']} |",
            f"| replicas killed / back | {soak.kills} / {soak.back} |",
            f"| memory (PSS) after the warm-up | median {middle:.1f} MB, {slope:+.1f} KB a minute |",
            f"| file descriptors before / after | {rest.fds_before} / {rest.fds} |",
            f"| connections, in flight, queued after | {rest.connections}, {rest.in_flight}, {rest.queued} |",
            "",
            "| s | PSS MB | fds | connections | in flight | requests |",
            "| --- | --- | --- | --- | --- | --- |",
            *table,
            "",
        ]
    )


def main(argv: list[str]) -> int:
    """0: passed; 1: what was wrong is printed."""
    parser = argparse.ArgumentParser(prog="make soak-router", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0, help="length of the load (1200)")
    parser.add_argument("--streams", type=int, default=256, help="clients (256)")
    parser.add_argument(
        "--step-ms", type=float, default=200.0, help="time between two tokens of a stream (200)"
    )
    parser.add_argument("--kill-every-s", type=float, default=20.0, help="pause between two kills (20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", metavar="FILE", type=Path, help="write the report there")
    options = parser.parse_args(argv)
    soak = Soak(Box(), options)
    try:
        soak.start()
        rest = asyncio.run(soak.run())
        said = explained(soak)
    finally:
        soak.box.close()
    wrong = complaints(soak.samples, soak.outcomes.count, soak.kills, soak.back, rest)
    text = report(soak, rest, wrong)
    print("\n" + text)
    print("\n".join(said))
    keep(options.record, text)
    print(f"===== soak-router {'failed' if wrong else 'passed'} in {options.seconds:g} s =====")
    return 1 if wrong else 0


if __name__ == "__main__":
    with interruptible():
        sys.exit(main(sys.argv[1:]))
