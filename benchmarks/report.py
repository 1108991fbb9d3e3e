"""From raw rounds to a line, a table, and the page that records it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.plot import svg
from benchmarks.rounds import Figures, Round

BASE = "nginx"
_MARKS = re.compile(r"(<!-- bench:begin -->\n).*?(<!-- bench:end -->)", re.DOTALL)
_NOTHING = "-"
Of = Callable[[Figures], float | None]


def _key(name: str, scale: float = 1.0) -> Of:
    def read(figures: Figures) -> float | None:
        value = figures.get(name)
        return None if value is None else value * scale

    return read


def absolute(rounds: list[Round], name: str, of: Of) -> list[float]:
    """One candidate's figure in every round that has it."""
    found = (of(figures[name]) for figures in rounds if name in figures)
    return [value for value in found if value is not None]


def paired(
    rounds: list[Round], name: str, base: str, of: Of, join: Callable[[float, float], float]
) -> list[float]:
    """One candidate's figure joined with another's of the same round: a ratio or a difference."""
    values = []
    for figures in rounds:
        if name in figures and base in figures:
            mine, other = of(figures[name]), of(figures[base])
            if mine is not None and other:
                values.append(join(mine, other))
    return values


def ratios(rounds: list[Round], name: str, base: str, key: str) -> list[float]:
    """Candidate over base, round by round."""
    return paired(rounds, name, base, _key(key), lambda mine, other: mine / other)


def _added(rounds: list[Round], name: str, key: str, scale: float) -> list[float]:
    return paired(rounds, name, "direct", _key(key, scale), lambda mine, other: mine - other)


def _median(values: list[float], form: str) -> str:
    return format(statistics.median(values), form) if values else _NOTHING


def spread(values: list[float]) -> str:
    """`median (lowest to highest)`."""
    if not values:
        return _NOTHING
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def line(name: str, figures: Figures) -> str:
    """One turn, while it goes on."""
    parts = [f"{name:<12}"]
    for key, form, unit in (
        ("plain_per_s", ",.0f", "req/s"), ("plain_cpu_us", ".1f", "us/req"), ("paced_cpu_us", ".1f", "us/chunk paced"),
        ("paced_kept_pct", ".1f", "% kept"), ("paced_waited_pct", ".1f", "% waited for the core"), ("single_latency_p50_us", ".0f", "us alone"),
    ):  # fmt: skip
        value = figures.get(key)
        if value is not None:
            parts.append(f"{value:{form}} {unit}")
    errors = sum(value or 0 for key, value in figures.items() if key.endswith("_errors"))
    return "  ".join([*parts, *([f"{errors:.0f} ERRORS"] if errors else [])])


def _columns(rounds: list[Round], name: str) -> list[str]:
    def plain(key: str, form: str, scale: float = 1.0) -> str:
        return _median(absolute(rounds, name, _key(key, scale)), form)

    def added(key: str, scale: float, form: str) -> str:
        p50, p99 = (_median(_added(rounds, name, key.format(p), scale), form) for p in ("p50", "p99"))
        return f"{p50} / {p99}"

    errors = sum(
        value or 0
        for figures in rounds
        for key, value in figures.get(name, {}).items()
        if key.endswith("_errors")
    )
    return [
        plain("paced_cpu_us", ".1f"),
        spread(ratios(rounds, name, BASE, "paced_cpu_us")),
        plain("paced_kept_pct", ".1f"),
        added("paced_delay_{}_us", 1e-3, "+.2f"),
        plain("plain_cpu_us", ".1f"),
        spread(ratios(rounds, name, BASE, "plain_cpu_us")),
        plain("plain_per_s", ",.0f"),
        plain("fast_per_s", ",.0f"),
        added("single_latency_{}_us", 1.0, "+.0f"),
        _median(_added(rounds, name, "first_ttft_p50_us", 1.0), "+.0f"),
        f"{plain('plain_pss_bytes', '.0f', 1e-6)} / {plain('open_pss_bytes', '.0f', 1e-6)}",
        f"{errors:.0f}",
    ]


_HEADS = (
    "CPU µs per paced chunk", "over nginx", "chunks kept %", "added chunk delay p50 / p99 ms", "CPU µs per request",
    "over nginx", "req/s", "chunks/s unpaced", "added latency alone p50 / p99 µs", "added first token µs",
    "PSS MB, 64 connections / 1,000 open streams", "errors",
)  # fmt: skip


def markdown(rounds: list[Round], about: dict[str, Any]) -> str:
    """The table, our ratios to each of the others, and what was measured where."""
    names = [name for name in about["upstream"] if any(name in figures for figures in rounds)]
    rows = [
        ("proxy", "upstream", *_HEADS),
        tuple("---" for _ in range(len(_HEADS) + 2)),
        *((name, about["upstream"][name], *_columns(rounds, name)) for name in names),
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    ours = [name for name in names if "gpuserve" in about["versions"][name]]
    others = [name for name in names if name != "direct"]
    pairs = ["| ratio | CPU per paced chunk | CPU per request | req/s |", "| --- | --- | --- | --- |"]
    for mine in ours:
        for other in (o for o in others if o != mine):
            cells = (
                spread(ratios(rounds, mine, other, k))
                for k in ("paced_cpu_us", "plain_cpu_us", "plain_per_s")
            )
            pairs.append(f"| {mine} / {other} | " + " | ".join(cells) + " |")
    versions = "; ".join(f"{name}: {about['versions'][name]}" for name in names if name != "direct")
    notes = [
        f"{about['date']}, revision {about['revision']}, {about['rounds']} rounds; {about['machine']}. {versions}.",
        "Medians over the rounds; ratios and differences are of the same round, with lowest and highest in brackets.",
    ]
    waited = [v for name in others for v in absolute(rounds, name, _key("paced_waited_pct"))]
    if waited:
        notes.append(
            f"While pacing, a proxy was ready and waited for its core {statistics.median(waited):.1f} % of the time (median of "
            f"all turns; highest {max(waited):.1f} %): what else ran on this machine."
        )
    notes += [f"Not measured: {name} ({why})." for name, why in about["missing"].items()]
    blocks = [table, *(["\n".join(pairs)] if len(pairs) > 2 else []), " ".join(notes)]
    return "\n\n".join(blocks) + "\n"


def record(docs: Path, text: str, rounds: list[Round], about: dict[str, Any]) -> None:
    """Put table and plot into the documents."""
    page = docs / "performance.md"
    before = page.read_text()
    fresh, count = _MARKS.subn(lambda found: found[1] + "\n" + text + "\n" + found[2], before)
    if count != 1:
        raise SystemExit(f"{page} has no <!-- bench:begin --> ... <!-- bench:end --> to write between")
    page.write_text(fresh)
    names = [name for name in about["upstream"] if name != "direct"]
    bars = {
        "CPU per paced chunk": {n: ratios(rounds, n, BASE, "paced_cpu_us") for n in names},
        "CPU per request": {n: ratios(rounds, n, BASE, "plain_cpu_us") for n in names},
    }
    (docs / "images").mkdir(exist_ok=True)
    (docs / "images" / "bench.svg").write_text(svg(bars, f"{about['date']}, {about['rounds']} rounds"))
    print(f"recorded in {page} and {docs / 'images' / 'bench.svg'}")
