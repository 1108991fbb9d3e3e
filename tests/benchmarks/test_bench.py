"""`make bench`: real proxies and real load for a second, and the arithmetic of the table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.candidates import ALL, DEFAULT
from benchmarks.plot import svg
from benchmarks.rounds import Figures, Round

from benchmarks import report

ROOT = Path(__file__).resolve().parents[2]


def turn(cpu_us: float, latency_us: float, **more: float) -> Figures:
    return {
        "paced_cpu_us": cpu_us, "plain_cpu_us": cpu_us * 2, "single_latency_p50_us": latency_us,
        "single_latency_p99_us": latency_us * 2, "plain_errors": 0.0, **more,
    }  # fmt: skip


ROUNDS: list[Round] = [
    {"direct": {"single_latency_p50_us": 20.0, "single_latency_p99_us": 50.0}, "nginx": turn(10, 100), "ours": turn(11, 220)},
    {"direct": {"single_latency_p50_us": 20.0, "single_latency_p99_us": 50.0}, "nginx": turn(20, 300), "ours": turn(26, 520)},
    {"direct": {"single_latency_p50_us": 20.0, "single_latency_p99_us": 50.0}, "nginx": turn(12, 110), "ours": turn(12, 240, fast_errors=2)},
]  # fmt: skip
ABOUT = {
    "date": "2026-01-02", "revision": "abc", "rounds": 3, "machine": "a CPU",
    "versions": {"direct": "no proxy", "nginx": "nginx/1", "ours": "gpuserve abc"},
    "upstream": {"direct": "TCP", "nginx": "Unix", "ours": "Unix"}, "missing": {"haproxy": "no package"},
}  # fmt: skip


def test_ratios_are_of_the_same_round() -> None:
    """A slow round is slow for both: the median over rounds of 1.1, 1.3 and 1.0, not the ratio of two medians."""
    assert report.spread(report.ratios(ROUNDS, "ours", "nginx", "paced_cpu_us")) == "1.10 (1.00 to 1.30)"
    assert report.ratios(ROUNDS, "haproxy", "nginx", "paced_cpu_us") == []


def test_the_table_says_what_is_unknown_and_what_is_missing() -> None:
    text = report.markdown(ROUNDS, ABOUT)
    rows = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ours |")
    ]
    (row,) = rows
    cells = dict(zip(report._HEADS, row[2:], strict=False))
    assert row[3] == "1.10 (1.00 to 1.30)"
    assert cells["added latency alone p50 / p99 µs"] == "+220 / +430"
    assert cells["chunks/s unpaced"] == "-"
    assert cells["errors"] == "2"
    assert "Not measured: haproxy (no package)." in text


def test_a_round_without_a_candidate_counts_for_the_others() -> None:
    rounds: list[Round] = [*ROUNDS, {"nginx": turn(10, 100)}]
    assert len(report.ratios(rounds, "ours", "nginx", "plain_cpu_us")) == 3
    assert report.markdown([{"nginx": turn(10, 100)}], ABOUT)


def test_the_record_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    report.record(tmp_path, "new\n", ROUNDS, ABOUT)
    assert page.read_text() == "before\n<!-- bench:begin -->\n\nnew\n\n<!-- bench:end -->\nafter\n"
    ET.parse(tmp_path / "images" / "bench.svg")


def test_the_plot_draws_each_median_to_scale() -> None:
    root = ET.fromstring(svg({"CPU": {"nginx": [1.0], "ours": [1.0, 2.0, 3.0]}}, "note <&>"))
    widths = [float(bar.attrib["width"]) for bar in list(root.iter("{http://www.w3.org/2000/svg}rect"))[1:]]
    assert abs(widths[1] - 2 * widths[0]) < 0.2


def test_the_page_has_room_for_the_record_and_lists_every_candidate() -> None:
    assert report._MARKS.search((ROOT / "docs" / "performance.md").read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert all(f"`{name}`" in page for name in ALL)
    assert set(DEFAULT) <= ALL.keys()


def test_a_short_run_measures_our_router(tmp_path: Path) -> None:
    """Load programs compiled, replicas, router and client started, every answer whole."""
    argv = [
        sys.executable, "-m", "benchmarks", "--only", "ours", "--rounds", "1", "--seconds", "0.3",
        "--phases", "plain,paced", "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    if shutil.which("gcc") is None:
        assert "need a C compiler" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "rounds.json").read_text())["rounds"][0]["ours"]
    assert ours["plain_errors"] == ours["paced_errors"] == 0
    assert ours["plain_per_s"] > 0
    assert ours["paced_kept_pct"] > 10
    assert ours["paced_cpu_us"] > 0
