"""Prints the fault table from what its tests reported, those on the look-alike and those on the real vLLM.

`python -m tests.faults.report REPORT [--record docs/reliability.md]`
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fetch import cpu_model, revision
from tests.faults.table import ROWS
from tests.records import put_between

MARKS = ("<!-- faults: written by make faults RECORD=docs/reliability.md -->", "<!-- /faults -->")
FIGURES = ("failed", "told", "detect_s", "recover_s", "left")


@dataclass
class Seen:
    """The tests of one row on one engine."""

    outcomes: set[str] = field(default_factory=set)
    tests: int = 0
    figures: list[Mapping[str, float | None]] = field(default_factory=list)

    def worst(self, name: str) -> str:
        """The largest of the figures; empty where none was asked for."""
        values = [value for each in self.figures if (value := each.get(name)) is not None]
        return f"{max(values):.2f}".rstrip("0").rstrip(".") if values else ""

    @property
    def result(self) -> str:
        return ", ".join(sorted(self.outcomes)) if self.tests else "no test"

    @property
    def failed(self) -> bool:
        return bool(self.outcomes - {"passed", "skipped"})

    @property
    def skipped(self) -> bool:
        """Nothing was shown: none of the tests could run here."""
        return self.outcomes == {"skipped"}


@dataclass
class Lines:
    """Both engines' tests of one row."""

    sim: Seen = field(default_factory=Seen)
    vllm: Seen = field(default_factory=Seen)


class Report:
    """What every test of a row has said.

    :param entries: one mapping for each test, as tests/conftest.py writes it.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self.rows = {number: Lines() for number in ROWS}
        self.tests = 0
        for entry in _last(entries):
            self.tests += 1
            for number in entry["rows"]:
                seen: Seen = getattr(self.rows[number], entry["engine"])
                seen.tests += 1
                seen.outcomes.add(entry["outcome"])
                seen.figures.append(entry["measured"])

    @property
    def has_vllm(self) -> bool:
        return any(row.vllm.tests for row in self.rows.values())

    def vllm(self, number: int) -> str:
        """The column of the real vLLM: its result and figures, or why there are none."""
        seen = self.rows[number].vllm
        if not seen.tests:
            return ROWS[number].no_vllm or ("no test" if self.has_vllm else "not in this run")
        words = [("yes" if seen.outcomes == {"passed"} else seen.result) + f" ({seen.tests})"]
        words += [f"{name.removesuffix('_s')} {seen.worst(name)}" for name in FIGURES if seen.worst(name)]
        return ", ".join(words)

    def table(self) -> str:
        """Markdown. A row without a test says so."""
        out = [
            "| # | fault | what must hold | tests | result | failed | told | detect s | recover s | left | the real vLLM |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for number, row in ROWS.items():
            sim = self.rows[number].sim
            figures = [sim.worst(name) for name in FIGURES]
            cells = [
                str(number),
                row.fault,
                row.must,
                str(sim.tests),
                sim.result,
                *figures,
                self.vllm(number),
            ]
            out.append("| " + " | ".join(cells) + " |")
        return "\n".join(out)

    def wrong(self) -> list[str]:
        """What keeps the table from being green."""
        found = []
        for number, row in self.rows.items():
            if row.sim.failed or not row.sim.tests:
                found.append(f"row {number}: {row.sim.result}")
            if row.vllm.failed:
                found.append(f"row {number} on the real vLLM: {row.vllm.result}")
            if self.has_vllm and not row.vllm.tests and ROWS[number].no_vllm is None:
                found.append(f"row {number}: no test of it ran against the real vLLM")
        return found

    def skipped(self) -> list[int]:
        """Rows of which nothing could be shown on this machine."""
        return [number for number, row in self.rows.items() if row.sim.skipped or row.vllm.skipped]


def _last(entries: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Of a test that ran again, or that failed while it tidied up, what it said last."""
    return {(entry["test"], entry["engine"]): entry for entry in entries}.values()


def read(path: Path) -> Report:
    """A report file."""
    return Report(json.loads(line) for line in path.read_text("utf-8").splitlines())


def record(page: Path, report: Report, took_s: float | None = None) -> None:
    """Write the table into `page`, between its marks, with revision, date and machine."""
    took = f" in {took_s / 60:.0f} minutes" if took_s else ""
    setting = (
        f"Revision {revision(Path(__file__).parents[2])}, {time.strftime('%Y-%m-%d')}: {report.tests} tests{took} on "
        f"{cpu_model()}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}."
    )
    put_between(page, MARKS, f"{setting}\n\n{report.table()}")


def show(report: Report) -> int:
    """Print the table and what is wrong with it; the exit status."""
    print(report.table())
    if report.skipped():
        print(f"\nskipped here: rows {', '.join(map(str, report.skipped()))}", file=sys.stderr)
    wrong = report.wrong()
    print("\n" + ("\n".join(["not green:", *wrong]) if wrong else "green: every row"), file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    """Print the table; 1 where it is not green."""
    parser = argparse.ArgumentParser(description="Print the fault table from a report of its tests.")
    parser.add_argument("report", type=Path, help="what GPUSERVE_FAULTS_REPORT named while the tests ran")
    parser.add_argument("--record", type=Path, metavar="PAGE", help="write the table into this page, too")
    options = parser.parse_args()
    report = read(options.report)
    if options.record:
        record(options.record, report)
    return show(report)


if __name__ == "__main__":
    sys.exit(main())
