"""A run's figures for people: one column a run, so that two can be read side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpuserved.bench.figures import LATE_WARN_S, PERCENTILES
from gpuserved.bench.run import Progress

Json = dict[str, Any]
_RATES = (
    ("requests", "requests", ""),
    ("offered", "offered_per_s", " req/s"),
    ("answered", "answered_per_s", " req/s"),
    ("failed", "failed_pct", " %"),
    ("lost", "lost_pct", " %"),
    ("goodput", "goodput_per_s", " req/s"),
    ("within the goal", "goodput_pct", " %"),
    ("prompt tokens", "prompt_tokens_per_s", " tok/s"),
    ("output tokens", "output_tokens_per_s", " tok/s"),
)
_TIMES = (
    ("ttft_ms", "time to first token"),
    ("itl_ms", "inter-token latency"),
    ("tpot_ms", "time per output token"),
    ("e2e_ms", "end to end"),
)


def number(value: float | None, unit: str = "") -> str:
    """A figure short enough to read; unknown is a dash."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{unit}"


def table(runs: Mapping[str, Json]) -> str:
    """Throughput with a column for each run, then latencies with a row for each run and a column for each percentile."""
    rows: list[tuple[str, ...]] = [("", *runs)]
    for label, key, unit in _RATES:
        cells = [number(run[key], unit) for run in runs.values()]
        if any(cell != "-" for cell in cells):
            rows.append((label, *cells))
    marks = (*(f"p{percent}" for percent in PERCENTILES), "max")
    times: list[tuple[str, ...]] = [("ms", "", *marks)]
    for key, label in _TIMES:
        known = {name: run[key] for name, run in runs.items() if run[key] is not None}
        times += [(label, name, *(number(spread[mark]) for mark in marks)) for name, spread in known.items()]
    return "\n".join([*_aligned(rows), "", *_aligned(times, words=2)])


def _aligned(rows: Sequence[tuple[str, ...]], words: int = 1) -> list[str]:
    """Columns: the first `words` to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def notes(name: str, run: Json) -> list[str]:
    """Replicas, failures, and what makes the figures doubtful."""
    lines = []
    for replica, its in run["replicas"].items():
        ttft = (its["ttft_ms"] or {}).get("p50")
        lines.append(
            f"{name}: {replica}: {its['requests']} requests, {its['failed']} failed, "
            f"{number(its['output_tokens_per_s'])} tok/s, first token p50 {number(ttft, ' ms')}"
        )
    lines += [f"{name}: {count} x {why}" for why, count in run["failures"].items()]
    late = (run["client_late_ms"] or {}).get("p99", 0.0)
    if late > LATE_WARN_S * 1e3:
        lines.append(
            f"{name}: this client sent late (p99 {number(late, ' ms')}): it, or its machine, is too slow for this load; latencies "
            "include that"
        )
    return lines


def progress(name: str, now: Progress) -> str:
    """One line while it runs."""
    failed = sum(result.outcome.value != "ok" for result in now.results)
    return (
        f"{name}: {now.elapsed_s:6.1f} s  {now.sent}/{now.total} sent  {now.in_flight} in flight  "
        f"{len(now.results) - failed} answered  {failed} failed"
    )
