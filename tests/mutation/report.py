"""The figures of a run, as text for a terminal and as Markdown for docs/runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.mutation.forks import Outcome
from tests.mutation.mutants import Mutant

DEAD = {Outcome.KILLED, Outcome.TIMEOUT}


@dataclass(frozen=True)
class Result:
    """One mutant's end."""

    mutant: Mutant
    outcome: Outcome
    said: str
    """The test that killed it."""
    equivalent: str = ""
    """Why no test can tell it from the original; empty: one should."""


@dataclass(frozen=True)
class Score:
    """Of a module, or of all."""

    mutants: int
    killed: int
    timeout: int
    survived: int
    unreached: int
    equivalent: int

    @property
    def pct(self) -> float | None:
        """Killed, of those that are not equivalent; None: there are none."""
        counted = self.mutants - self.equivalent
        return 100.0 * (self.killed + self.timeout) / counted if counted else None


def score(results: Sequence[Result]) -> Score:
    """The figures of some results."""
    counts = Counter(one.outcome for one in results)
    equivalent = sum(1 for one in results if one.equivalent and one.outcome not in DEAD)
    lived = Counter(one.outcome for one in results if not one.equivalent)
    return Score(
        len(results), counts[Outcome.KILLED], counts[Outcome.TIMEOUT], lived[Outcome.SURVIVED], lived[Outcome.UNREACHED],
        equivalent,
    )  # fmt: skip


def by_module(results: Sequence[Result], package: str) -> dict[str, Score]:
    """The figures of each module, named from the package on."""
    names = sorted({one.mutant.module for one in results})
    return {
        name.removeprefix(f"{package}."): score([one for one in results if one.mutant.module == name])
        for name in names
    }


def upper_bound_pct(pct: float, count: int) -> float:
    """What the true score of all mutants may be with a sample's score of `pct` (Wilson's interval, 95 %)."""
    p, z = pct / 100, 1.96
    middle = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return 100 * (middle + spread) / (1 + z * z / count)


def survivors(results: Sequence[Result]) -> list[str]:
    """One line each: file:line, the change, and whether a test runs it at all."""
    return [
        f"{one.mutant.module.replace('.', '/')}.py:{one.mutant.line}  {one.mutant.function or '-'}: {one.mutant.change}"
        + ("  (no test reaches it)" if one.outcome is Outcome.UNREACHED else "")
        for one in results
        if one.outcome not in DEAD and not one.equivalent
    ]


def table(results: Sequence[Result], package: str) -> list[str]:
    """Markdown rows: a module each, the weakest first, and the sum."""

    def row(name: str, one: Score) -> str:
        pct = "" if one.pct is None else f"{one.pct:.1f}"
        cells = (name, one.mutants, one.killed, one.timeout, one.survived, one.unreached, one.equivalent, pct)
        return "| " + " | ".join(str(cell) for cell in cells) + " |"

    modules = sorted(by_module(results, package).items(), key=lambda pair: (pair[1].pct or 0.0, pair[0]))
    return [
        "| module | mutants | killed | timeout | survived | not reached | equivalent | killed % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row(name, one) for name, one in modules),
        row("**all**", score(results)),
    ]


def operators(results: Sequence[Result]) -> list[str]:
    """Markdown rows: how each kind of change fared."""
    names = sorted({one.mutant.operator for one in results})
    each = {name: score([one for one in results if one.mutant.operator == name]) for name in names}
    return [
        "| operator | mutants | killed % |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {one.mutants} | {'' if one.pct is None else f'{one.pct:.1f}'} |"
            for name, one in each.items()
        ),
    ]


def markdown(results: Sequence[Result], package: str, title: str, setting: str, verdict: str) -> str:
    """The whole record."""
    alike = [
        f"- `{one.mutant.name}`: {one.equivalent}"
        for one in results
        if one.equivalent and one.outcome not in DEAD
    ]
    lines = [
        f"# {title}",
        "",
        setting,
        "",
        f"**{verdict}**",
        "",
        *table(results, package),
        "",
        *operators(results),
        "",
    ]
    lines += ["## Survivors", "", *(f"- `{line}`" for line in survivors(results)), ""]
    if alike:
        lines += ["## Equivalent, by tests/mutation/equivalent.toml", "", *alike, ""]
    return "\n".join(lines)
