"""`python -m benchmarks`: the router beside nginx, HAProxy, vllm-router and aiohttp, in interleaved rounds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.candidates import ALL, DEFAULT, Candidate, Missing, ours_at
from benchmarks.measure import cores
from benchmarks.rounds import Arena, Round, phases

from benchmarks import fetch, report

HERE = Path(__file__).resolve().parent


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...",
        description="Measure proxies side by side: each pinned to one core, in rounds that take turns.",
        epilog='examples: make bench ARGS="--only ours,nginx --rounds 5"\n'
        '          make bench ARGS="--only ours,nginx --also before=../gpuserve-main --phases paced"\n'
        '          make bench ARGS="--docs"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(ALL)} ({','.join(DEFAULT)})")
    parser.add_argument(
        "--also", metavar="NAME=FOLDER", action="append", default=[],
        help="our router from another checkout, under this name; may be repeated",
    )  # fmt: skip
    parser.add_argument("--policy", default="least_inflight", help="our router's policy (least_inflight)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the long phases (3)")
    parser.add_argument("--phases", metavar="NAMES", help="of plain,paced,fast,single,first,open (all)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=fetch.CACHE, help="for the raw rounds")
    parser.add_argument("--docs", action="store_true", help="record the result in docs/performance.md")
    return parser.parse_args(argv)


def _chosen(options: argparse.Namespace) -> list[Candidate]:
    names = options.only.split(",") if options.only else list(DEFAULT)
    unknown = [name for name in names if name not in ALL]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(ALL)}")
    if "direct" not in names:
        names.insert(0, "direct")  # what a proxy adds is the difference to it
    chosen = [ALL[name] for name in names]
    for pair in options.also:
        name, _, folder = pair.partition("=")
        if not (Path(folder) / "daemon" / "gpuserved").is_dir():
            sys.exit(f"--also {pair}: {folder or 'nothing'} is no checkout of gpuserve")
        chosen.append(ours_at(name, Path(folder).resolve()))
    return chosen


def _measure(
    options: argparse.Namespace, chosen: list[Candidate], arena: Arena
) -> tuple[list[Round], dict[str, str]]:
    """All rounds, and why a candidate is not among them."""
    missing: dict[str, str] = {}
    rounds: list[Round] = []
    plan = phases(options.seconds, options.phases.split(",") if options.phases else None)
    for number in range(options.rounds):
        figures: Round = {}
        for candidate in chosen if number % 2 == 0 else reversed(chosen):
            if candidate.name in missing:
                continue
            begun = time.monotonic()
            try:
                figures[candidate.name] = arena.measure(candidate, plan)
            except Missing as why:
                missing[candidate.name] = str(why)
                print(f"\n*** {candidate.name} IS NOT MEASURED: {why}\n", flush=True)
                continue
            print(
                f"round {number + 1}/{options.rounds}  {report.line(candidate.name, figures[candidate.name])}"
                f"  [{time.monotonic() - begun:.0f} s]",
                flush=True,
            )
        rounds.append(figures)
    return rounds, missing


def main(argv: list[str]) -> int:
    """Measure, print the table, keep the raw rounds; 1: nothing could be measured."""
    options = _arguments(argv)
    chosen = _chosen(options)
    programs = fetch.compiled(HERE / "load")
    proxy_core, load_cores = cores()
    with (
        tempfile.TemporaryDirectory(prefix="gsb-") as folder,
        closing(Arena(Path(folder), programs, proxy_core, load_cores, options.policy)) as arena,
    ):
        rounds, missing = _measure(options, chosen, arena)
    shown = [c for c in chosen if any(c.name in figures for figures in rounds)]
    if not shown:
        return 1
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "revision": fetch.revision(HERE.parent),
        "machine": f"{fetch.cpu_model()}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}",
        "rounds": options.rounds,
        "seconds": options.seconds,
        "versions": {c.name: c.version() for c in shown},
        "upstream": {c.name: c.upstream for c in shown},
        "missing": missing,
    }
    raw = options.out / "rounds.json"
    raw.write_text(json.dumps({"about": about, "rounds": rounds}, indent=1))
    text = report.markdown(rounds, about)
    print("\n" + text)
    print(f"raw rounds: {raw}")
    if options.docs:
        report.record(HERE.parent / "docs", text, rounds, about)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
