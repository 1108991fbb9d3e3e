"""Which tests could see a change: measured line by line, and by name for what runs once, when a module is imported."""

from __future__ import annotations

import ast
import json
import re
import time
from collections import defaultdict
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest
from tests.mutation.forks import in_child
from tests.mutation.mutants import Mutant, definitions

BUDGET_S = 6.0
"""Processor time, under coverage, of the tests that one mutant gets."""
IMPORTED = ""
"""The context of what ran while tests were collected."""


@dataclass
class Baseline:
    """One run of all tests on the code as it is."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    """By test, in the order of the run. Under coverage, so rather too much."""
    failed: list[str] = field(default_factory=list)
    lines: dict[str, dict[int, frozenset[str]]] = field(default_factory=dict)
    """File -> line -> the tests that ran it."""

    def ran(self, path: Path, lines: tuple[int, int]) -> frozenset[str]:
        """Who ran any of these lines; `IMPORTED` is among them where collecting the tests did."""
        of_file = self.lines.get(str(path), {})
        return frozenset().union(*(of_file.get(line, ()) for line in range(lines[0], lines[1] + 1)))


class _Recorder:
    """pytest's plugin of the measured run."""

    def __init__(self, cov: coverage.Coverage, baseline: Baseline) -> None:
        self._cov = cov
        self._baseline = baseline

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._cov.switch_context(item.nodeid)
        begun = time.process_time()
        result = yield
        self._baseline.cpu_s[item.nodeid] = time.process_time() - begun
        self._cov.switch_context(IMPORTED)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._baseline.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._baseline.failed.append(f"{report.nodeid}: {report.longreprtext}")


def measure(root: Path, package: str, args: list[str]) -> Baseline:
    """Run all tests once, in a process of their own: nothing of the package may be imported in this one."""

    def run() -> str:
        baseline = Baseline()
        folder = root / package.replace(".", "/")
        files = [f"{folder}.py", f"{folder}/*", f"{folder}/**/*"]
        cov = coverage.Coverage(data_file=None, include=files, config_file=False)
        cov.start()
        cov.switch_context(IMPORTED)
        pytest.main(args, plugins=[_Recorder(cov, baseline)])
        cov.stop()
        data = cov.get_data()
        lines = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
        return json.dumps([baseline.cpu_s, baseline.failed, lines])

    cpu_s, failed, lines = json.loads(in_child(run))
    return Baseline(
        cpu_s,
        failed,
        {file: {int(n): frozenset(tests) for n, tests in rows.items()} for file, rows in lines.items()},
    )


@dataclass(frozen=True)
class _Use:
    """A statement in which a name occurs."""

    path: Path
    lines: tuple[int, int]
    function: str
    """Its outermost function's own name, without the class; empty outside of functions."""
    defines: tuple[str, ...]


class Reach:
    """Which tests to run for a mutant."""

    def __init__(
        self, baseline: Baseline, package: Iterable[Path], tests: Iterable[Path], root: Path
    ) -> None:
        """`root` is what the tests' names are relative to."""
        self._baseline = baseline
        self._uses: dict[str, list[_Use]] = defaultdict(list)
        for path in package:
            for name, use in _uses(path):
                self._uses[name].append(use)
        self._words = {
            str(path.relative_to(root)): set(re.findall(r"[A-Za-z_]\w*", path.read_text("utf-8")))
            for path in tests
        }
        self._by_file: dict[str, list[str]] = defaultdict(list)
        for test in baseline.cpu_s:
            self._by_file[test.split("::")[0]].append(test)

    def direct(self, mutant: Mutant) -> list[str]:
        """Tests that run the changed line themselves, where it is a function's; the quickest first."""
        return [] if mutant.defines else self._sorted(self._baseline.ran(mutant.path, mutant.lines))

    def imported(self, mutant: Mutant) -> list[str]:
        """Where importing the module, or collecting the tests, runs the change: those that may see what came of it."""
        ran = self._baseline.ran(mutant.path, mutant.lines)
        if not mutant.defines and IMPORTED not in ran:
            return []
        names = mutant.defines or (mutant.function.rpartition(".")[2],)
        named = {file for file, words in self._words.items() if words.intersection(names)}
        return self._sorted(ran | self._by_name(set(names)), named)

    def _sorted(self, tests: Iterable[str], named: Collection[str] = ()) -> list[str]:
        """Those of the files in `named` first, then by their time, up to `BUDGET_S` of it: a mutant that so many seconds of tests
        do not notice counts as not noticed.
        """
        known = self._baseline.cpu_s
        spent = 0.0
        found: list[str] = []
        order = {
            test: (test.split("::")[0] not in named, known[test], test) for test in known.keys() & set(tests)
        }
        for test in sorted(order, key=order.__getitem__):
            spent += known[test]
            if found and spent > BUDGET_S:
                break
            found.append(test)
        return found

    def _by_name(self, names: set[str]) -> set[str]:
        found: set[str] = set()
        todo = [name for name in names if name != "_"]
        while todo:
            name = todo.pop()
            for file, words in self._words.items():
                if name in words:
                    found.update(self._by_file[file])
            for use in self._uses[name]:
                ran = self._baseline.ran(use.path, use.lines)
                found |= ran
                more = use.defines if not use.function else (use.function,) if IMPORTED in ran else ()
                fresh = set(more) - names
                names |= fresh
                todo += fresh
        return found


def _uses(path: Path) -> Iterator[tuple[str, _Use]]:
    tree = ast.parse(path.read_bytes())
    for nodes, lines, function, defines in definitions(tree):
        use = _Use(path, lines, function.rpartition(".")[2], defines)
        for node in nodes:
            if isinstance(node, ast.Name):
                yield node.id, use
            elif isinstance(node, ast.Attribute):
                yield node.attr, use
            elif isinstance(node, ast.keyword) and node.arg:
                yield node.arg, use
