"""`make failpoints`: seeded runs in which the supervisor is killed at every step that its code names, and a judge at the end."""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import shutil
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fetch import revision
from tests.e2e.box import REPOSITORY
from tests.failpoints.census import Census
from tests.failpoints.run import Run
from tests.failpoints.script import ALL, Script, script
from tests.failpoints.world import end_all
from tests.interrupted import interruptible
from tests.records import keep

SHOWN_LINES = 80


@dataclass
class Result:
    """One run."""

    script: Script
    wrong: list[str]
    seconds: float
    lives: int = 0
    struck: bool = False
    deaths: int = 0
    log: str = ""
    top: str = ""
    """Where it lived."""


def play(seed: int, census: Census, keep: Path | None) -> Result:
    """One run, whatever becomes of it."""
    begun = time.monotonic()
    run = Run(script(seed), census)
    try:
        wrong = run.play()
    except Exception as error:
        wrong = [str(error) if isinstance(error, AssertionError) else traceback.format_exc()]
        wrong += census.wrong(run.world.roots.run)
    log = run.world.log.read_text("utf-8", errors="replace") if run.world.log.exists() else ""
    if wrong and keep is not None:
        shutil.copytree(run.world.roots.log, keep / f"seed-{seed}" / "log", dirs_exist_ok=True)
        shutil.copytree(run.world.roots.state, keep / f"seed-{seed}" / "state", dirs_exist_ok=True)
        (keep / f"seed-{seed}" / "daemon.log").write_text(log)
    run.world.remove()
    return Result(
        run.script, wrong, time.monotonic() - begun, run.world.lives, run.struck, len(run.model.deaths), log,
        str(run.world.top),
    )  # fmt: skip


def show(result: Result) -> None:
    """One line; where it failed also why, and how to see it again."""
    one = result.script
    what = "failed" if result.wrong else ("ok" if result.struck or one.of_shim else "ok, not reached")
    print(
        f"seed {one.seed:5} {one.point:16} {result.lives} lives {result.seconds:5.1f} s  {what}", flush=True
    )
    for line in result.wrong:
        print(f"    {line}")
    if result.wrong:
        print(f"    again: python -m tests.failpoints --only {one.seed}    ({one})")
        print("    " + "\n    ".join(result.log.splitlines()[-SHOWN_LINES:]), flush=True)


def report(results: list[Result], options: argparse.Namespace, seconds: float, scans: int) -> str:
    """All runs in Markdown."""
    bad = [result for result in results if result.wrong]
    runs = Counter(result.script.point for result in results)
    struck = Counter(result.script.point for result in results if result.struck)
    what = (
        f"Revision {revision(REPOSITORY)}, {os.cpu_count()} CPUs. `python -m tests.failpoints --runs {options.runs} --seed "
        f"{options.seed} --jobs {options.jobs}`: {len(results)} runs in {seconds:.0f} s, {sum(r.lives for r in results)} lives of "
        f"a supervisor, {sum(r.deaths for r in results)} processes of replicas killed, most of them while no supervisor ran, "
        f"{scans} looks at every process."
    )
    lines = [
        f"# Failpoints, {time.strftime('%Y-%m-%d')}",
        "",
        what,
        "",
        f"**{f'Failed: {len(bad)} runs' if bad else 'Passed.'}**",
        "",
        *(f"- seed {r.script.seed}, {r.script.point}: {'; '.join(r.wrong)}" for r in bad),
        *([""] if bad else []),
        "`struck`: runs in which the supervisor died at the step (a shim's steps kill the shim, and are not counted there).",
        "",
        "| step | runs | struck |",
        "| --- | --- | --- |",
        *(f"| {point} | {runs[point]} | {struck[point]} |" for point in ALL),
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """0: all passed; 1: those that did not are printed with their seeds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.failpoints", description=__doc__,
        epilog="example: python -m tests.failpoints --runs 50 --seed 1; python -m tests.failpoints --only 17 --keep /tmp/kept",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=50, help="how many seeds (50)")
    parser.add_argument("--seed", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--only", type=int, metavar="SEED", help="this one alone")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 2, help="runs at once (one for each CPU)"
    )
    parser.add_argument(
        "--limit-s",
        type=float,
        metavar="S",
        help="begin no run after so many seconds; the report says how many ran",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy the roots of failed runs there")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the report there")
    options = parser.parse_args(argv)
    seeds = [options.only] if options.only is not None else range(options.seed, options.seed + options.runs)
    census = Census()
    census.start()
    begun = time.monotonic()
    results = []

    def one(seed: int) -> Result | None:
        late = options.limit_s is not None and time.monotonic() - begun > options.limit_s
        return None if late else play(seed, census, options.keep)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(one, seed) for seed in seeds]
        try:
            for done in concurrent.futures.as_completed(futures):
                result = done.result()
                if result is not None:
                    results.append(result)
                    show(result)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    seconds = time.monotonic() - begun
    census.end()
    keep(options.record, report(results, options, seconds, census.scans))
    bad = sorted(result.script.seed for result in results if result.wrong)
    print(
        f"===== failpoints: {len(results) - len(bad)} passed, {len(bad)} failed {bad or ''} in {seconds:.0f} s ====="
    )
    return 1 if bad else 0


if __name__ == "__main__":
    with interruptible():
        sys.exit(main(sys.argv[1:]))
