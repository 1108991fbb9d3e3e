"""`make mutants`: small mistakes are put into the core, one at a time, and its tests must notice them.

A record of every mutant, with the test that killed it, is left in .venv/mutants.jsonl.

Why a program of our own: mutmut (3.8) changes what is inside functions that are not decorated, and names modules by their folder
unless that is `src`; the lifecycle table, the allow-list, the defaults of every setting, constants and properties would go
untested. cosmic-ray (8.7) starts the tests anew for each mutant, which for three thousand of them takes hours.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fetch import revision
from hypothesis import HealthCheck, Phase, settings
from tests.mutation import baseline, mutants, report, trials
from tests.mutation.forks import Outcome
from tests.mutation.report import DEAD, Result
from tests.records import keep

ROOT = Path(__file__).resolve().parents[2]
CORE_TESTS = ("tests/core", "tests/planner", "tests/policy")
LEFT_OUT = ("tests/planner/test_daemon.py", "tests/policy/test_simulated.py")
"""Tests of real daemons, which run no code of the core in this process, and simulated hours of traffic, which take too long."""
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
RECORDS = ROOT / ".venv" / "mutants.jsonl"
GROUP = 300
"""Mutants, in the order of the draw, whose quick and slow trials are finished before the next ones begin."""
PYTEST = [
    "-q", "-s", "-x", "--tb=no", "--no-header", "--assert=plain", "--import-mode=importlib", "-otimeout=0", "-pno:cacheprovider",
    "-pno:xdist", "-mnot real_vllm and not slow", *(f"--ignore={path}" for path in LEFT_OUT),
]  # fmt: skip


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--sample", type=int, metavar="N", help="try N mutants only, chosen by the seed")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="begin nothing new after this: what was tried is a sample"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="modules whose name contains one of these"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="trials at a time (one for each CPU)"
    )
    parser.add_argument("--at-least", type=float, default=85.0, metavar="PCT", help="fail below this (85)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the report there, in Markdown")
    parser.add_argument(
        "--records",
        type=Path,
        default=RECORDS,
        metavar="FILE",
        help="a line of JSON for each mutant goes there",
    )
    parser.add_argument("--package", default="gpuserved.core", help="what is mutated (gpuserved.core)")
    parser.add_argument("--source", default="daemon", metavar="DIR", help="the folder it is in (daemon)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="the repository")
    parser.add_argument(
        "--tests", nargs="+", default=CORE_TESTS, metavar="PATH", help="its tests, below the repository"
    )
    return parser.parse_args(argv)


def prepare() -> None:
    """What every fork shares: the libraries, and property tests that draw the same examples each time and do not shrink."""
    settings.register_profile(
        "mutants", max_examples=50, derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    settings.load_profile("mutants")
    for name in (
        "asyncio",
        "hypothesis.stateful",
        "hypothesis.strategies",
        "msgspec",
        "pytest",
        "pytest_asyncio.plugin",
        "pytest_timeout",
    ):
        __import__(name)
    gc.freeze()


def planned(
    chosen: Sequence[mutants.Mutant], reach: baseline.Reach
) -> tuple[list[trials.Trial], list[Result]]:
    """What is to be tried, and what no test reaches."""
    todo: list[trials.Trial] = []
    unreached: list[Result] = []
    for number, mutant in enumerate(chosen):
        trial = trials.Trial(number, mutant, tuple(reach.direct(mutant)), tuple(reach.imported(mutant)))
        if trial.direct or trial.imported:
            todo.append(trial)
        else:
            unreached.append(Result(mutant, Outcome.UNREACHED, ""))
    return todo, unreached


class Progress:
    """A line every ten seconds."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._lived = total, 0, 0
        self._begun = self._said = time.monotonic()

    def seen(self, result: Result) -> None:
        """One more trial has ended; a survivor is shown at once."""
        outcome = result.outcome
        if outcome not in DEAD:
            print(*report.survivors([result]), flush=True)
        self._done += 1
        self._lived += outcome not in DEAD
        now = time.monotonic()
        if now - self._said >= 10 or self._done == self._total:
            self._said = now
            spent = now - self._begun
            left = spent / self._done * (self._total - self._done)
            print(
                f"[{spent:5.0f} s] {self._done} of {self._total} tried, {self._lived} survive; {left:.0f} s to go",
                flush=True,
            )


def run(options: argparse.Namespace) -> tuple[list[Result], int]:
    """Everything but the report: the results, and how many mutants there are.

    :raises SystemExit: the tests fail on the code as it is.
    """
    begun = time.monotonic()
    root, source = options.root, options.root / options.source
    plain = [f"--rootdir={root}", *PYTEST[:2], *PYTEST[3:], *options.tests]
    measured = baseline.measure(source, options.package, plain)
    if measured.failed:
        raise SystemExit("the tests fail without any mutant:\n" + "\n".join(measured.failed))
    every = mutants.of_package(source, options.package)
    chosen = [one for one in every if any(text in one.module for text in options.only)]
    drawn = mutants.sampled(chosen, options.sample or len(chosen), options.seed)
    files = [path for each in options.tests for path in _python_files(root / each)]
    reach = baseline.Reach(measured, {one.path for one in every}, files, root)
    spent = time.monotonic() - begun
    print(
        f"{len(measured.cpu_s)} tests pass in {spent:.0f} s; {len(drawn)} of {len(chosen)} mutants are tried",
        flush=True,
    )
    args = [f"--rootdir={root}", *PYTEST, *options.tests]
    progress, results = Progress(len(drawn)), []
    for first in range(0, len(drawn), GROUP):
        todo, group = planned(drawn[first : first + GROUP], reach)
        for result in group:
            progress.seen(result)
        for trial, outcome, said in trials.tried(todo, args, measured.cpu_s, options.jobs):
            group.append(Result(trial.mutant, outcome, said))
            progress.seen(group[-1])
        results += group
        if options.minutes is not None and time.monotonic() - begun > 60 * options.minutes:
            break
    return sorted(results, key=lambda one: (one.mutant.module, one.mutant.line)), len(chosen)


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def with_reasons(
    results: Sequence[Result], reasons: dict[str, str], *, whole: bool
) -> tuple[list[Result], list[str]]:
    """The results with the reasons of equivalent ones, and what is wrong with that list."""
    marked = [Result(one.mutant, one.outcome, one.said, reasons.get(one.mutant.name, "")) for one in results]
    wrong = [
        f"{one.mutant.name}: listed as equivalent, and killed by {one.said}"
        for one in marked
        if one.equivalent and one.outcome in DEAD
    ]
    if whole:
        names = {one.mutant.name for one in results}
        wrong += [
            f"{name}: listed as equivalent, and there is no such mutant"
            for name in reasons
            if name not in names
        ]
    wrong += [
        f"{one.mutant.name}: could not be tried: {one.said}"
        for one in results
        if one.outcome is Outcome.BROKEN
    ]
    return marked, wrong


def record(results: Sequence[Result], file: Path) -> None:
    """A line of JSON for each mutant."""
    rows = (
        {
            "at": f"{one.mutant.path}:{one.mutant.line}", "name": one.mutant.name,
            "operator": one.mutant.operator, "outcome": one.outcome.value, "by": one.said, "equivalent": one.equivalent,
        }
        for one in results
    )  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def main(argv: Sequence[str]) -> int:
    """0: enough mutants are killed; 1: too few, or the list of equivalent ones is wrong."""
    options = parsed(argv)
    begun = time.monotonic()
    at = revision(ROOT)
    os.chdir(options.root)
    sys.path.insert(0, str(options.root / options.source))
    prepare()
    reasons = mutants.equivalent(EQUIVALENT)
    found, there = run(options)
    whole = len(found) == there
    results, wrong = with_reasons(
        found, reasons, whole=whole and not any(options.only) and options.root == ROOT
    )
    record(results, options.records)
    total = report.score(results)
    print(
        "\n".join(["", *report.table(results, options.package), "", "Survivors:", *report.survivors(results)])
    )
    pct, counted = total.pct or 0.0, max(1, total.mutants - total.equivalent)
    # A sample fails only where it shows that the score of all mutants is too low.
    bound = pct if whole else report.upper_bound_pct(pct, counted)
    if bound < options.at_least:
        wrong.append(f"{pct:.1f} % of the mutants are killed, and {options.at_least:g} % should be")
    verdict = (
        f"{pct:.1f} % of {counted} mutants killed ({total.survived} survived, {total.unreached} not reached; {total.equivalent} "
        f"more are equivalent)" + ("" if whole else f", a sample of {there}")
    )
    spent = time.monotonic() - begun
    if options.record is not None:
        form = f" SAMPLE={options.sample}" if options.sample else ""
        form += f' ARGS="--minutes {options.minutes:g}"' if options.minutes else ""
        setting = (
            f"Revision {at}, Python {sys.version.split()[0]}. `make mutants{form} SEED={options.seed}`: {spent / 60:.0f} minutes, "
            f"trials at a time: {options.jobs}. What is changed, and how it is tried: tests/mutation."
        )
        title = f"Mutation testing of the core, {time.strftime('%Y-%m-%d')}"
        keep(options.record, report.markdown(results, options.package, title, setting, verdict))
    print("\n".join(wrong))
    print(f"===== mutants {'failed' if wrong else 'passed'}: {verdict} in {spent:.0f} s =====")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
