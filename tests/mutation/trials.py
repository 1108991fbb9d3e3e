"""Trying a mutant: in a fork of a process that has all tests collected, or, where the change runs at import, of one that has not.

A mutant inside a function is put there by exchanging the function's code object, so that a trial costs a fork and the tests. What
runs at import (constants, defaults, tables, and functions that make them or a test's parameters) is imported anew with the change.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.abc import MetaPathFinder
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from tests.mutation.forks import BROKEN, KILLED, SURVIVED, Outcome, limit, pool
from tests.mutation.mutants import Mutant

IMPORT_CPU_S = 30.0
MEMORY_BYTES = 4 * 1024**3
"""Address space of one trial: a mutant that gathers without end fails instead of filling the machine."""


@dataclass(frozen=True)
class Trial:
    """A mutant and the tests that could tell, the quickest first."""

    number: int
    mutant: Mutant
    direct: tuple[str, ...]
    """Tried in place, where the change is in a function."""
    imported: tuple[str, ...]
    """Tried anew where the first do not notice: the change runs at import."""


Verdict = tuple[Trial, Outcome, str]
"""The last is the test that killed it, or what went wrong."""


class Limits:
    """pytest's plugin that gives each test a few times the processor time it takes on the code as it is."""

    def __init__(self, cpu_s: dict[str, float]) -> None:
        self._cpu_s = cpu_s

    def arm(self, test: str) -> None:
        """From now on."""
        limit(1.0 + 5.0 * self._cpu_s.get(test, 1.0))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.arm(item.nodeid)
        return (yield)


def tried(trials: Sequence[Trial], args: list[str], cpu_s: dict[str, float], jobs: int) -> Iterator[Verdict]:
    """What became of each. `args` are pytest's, for all tests."""
    anew = [trial for trial in trials if not trial.direct]
    for trial, outcome, said in _tried_warm([one for one in trials if one.direct], args, cpu_s, jobs):
        if outcome is Outcome.SURVIVED and trial.imported:
            anew.append(trial)
        else:
            yield trial, outcome, said
    yield from pool(anew, lambda trial, say: _anew(trial, say, cpu_s, args), jobs)


def _tried_warm(
    trials: list[Trial], args: list[str], cpu_s: dict[str, float], jobs: int
) -> Iterator[Verdict]:
    """In forks of one process that holds the collected tests and sends back a line a trial."""
    if not trials:
        return
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        with os.fdopen(writing, "w") as lines:
            pytest.main(args, plugins=[_Warm(trials, Limits(cpu_s), jobs, lines.write, lines.flush)])
        os._exit(0)
    os.close(writing)
    by_number = {trial.number: trial for trial in trials}
    with os.fdopen(reading) as lines:
        for line in lines:
            number, outcome, said = json.loads(line)
            yield by_number.pop(number), Outcome(outcome), said
    os.waitpid(pid, 0)
    for trial in by_number.values():
        yield trial, Outcome.BROKEN, "the tests could not be collected"


class _Warm:
    """pytest's plugin that, in the place of the tests, tries mutants with them."""

    def __init__(
        self,
        trials: list[Trial],
        limits: Limits,
        jobs: int,
        write: Callable[[str], object],
        flush: Callable[[], None],
    ) -> None:
        self._trials, self._limits, self._jobs = trials, limits, jobs
        self._write, self._flush = write, flush
        self._kills: Counter[tuple[str, str, str]] = Counter()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for trial, outcome, said in pool(self._trials, lambda t, say: self._act(t, say, items), self._jobs):
            if outcome is Outcome.KILLED:
                self._kills[trial.mutant.module, trial.mutant.function, said] += 1
            self._write(json.dumps([trial.number, outcome.value, said]) + "\n")
            self._flush()
        return True

    def _act(self, trial: Trial, say: Callable[[str], object], items: dict[str, pytest.Item]) -> int:
        limit_memory()
        exchange(trial.mutant)
        mutant = trial.mutant
        # What killed its neighbours comes first; the sort is stable, so among the others the quickest does.
        tests = sorted(trial.direct, key=lambda test: -self._kills[mutant.module, mutant.function, test])
        for test in tests:
            item = items[test]
            self._limits.arm(test)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if item.session.testsfailed:
                say(test)
                return KILLED
        return SURVIVED


def _anew(trial: Trial, say: Callable[[str], object], cpu_s: dict[str, float], args: list[str]) -> int:
    limit_memory()
    limit(IMPORT_CPU_S)
    sys.meta_path.insert(0, _Mutated(trial.mutant))
    only = _Only(trial.imported)
    files = list(dict.fromkeys(test.split("::")[0] for test in trial.imported))
    options = [arg for arg in args if arg.startswith("-")]
    code = pytest.main([*options, *files], plugins=[only, Limits(cpu_s)])
    if code == pytest.ExitCode.OK:
        return SURVIVED
    say(only.failed or f"pytest ended with {code!r}")
    broken = code in {
        pytest.ExitCode.INTERNAL_ERROR,
        pytest.ExitCode.USAGE_ERROR,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    }
    return BROKEN if broken and not only.failed else KILLED


class _Only:
    """pytest's plugin that leaves the tests of a trial, with any parameters: those may follow from the mutated code."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._rank = {test.split("[")[0]: at for at, test in reversed(list(enumerate(tests)))}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        left = [item for item in items if item.nodeid.split("[")[0] in self._rank]
        items[:] = sorted(left, key=lambda item: self._rank[item.nodeid.split("[")[0]])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (on import)"


class _Mutated(MetaPathFinder):
    """Imports one module with a change in it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            raise ImportError(f"{fullname} is not on the path")
        code = self._mutant.compiled()

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                del fullname
                return code

        spec.loader = Loader(fullname, spec.origin)
        return spec


def limit_memory() -> None:
    """Of this process and what it forks."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))


def exchange(mutant: Mutant) -> None:
    """Give a function that is already imported the mutant's code.

    :raises KeyError: the module has no such name.
    :raises TypeError: it is not a function.
    """
    function = _function(sys.modules[mutant.module], mutant.function.split("."))
    code = mutant.compiled()
    for name in mutant.function.split("."):
        inner = [one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name]
        first = function.__code__.co_firstlineno
        code = next((one for one in inner if one.co_firstlineno == first), inner[0])
    function.__code__ = code


def _function(module: ModuleType, names: Sequence[str]) -> FunctionType:
    found: Any = module
    for name in names:
        found = vars(found)[name]
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, cached_property):
        found = found.func
    elif isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    if not isinstance(found, FunctionType):
        raise TypeError(f"{'.'.join(names)} is not a function: {found!r}")
    return found
