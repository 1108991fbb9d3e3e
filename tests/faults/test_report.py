"""The table says what its tests said: nothing untested, failed or skipped looks green."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tests.faults.report import MARKS, Report, record
from tests.faults.table import ROWS
from tests.records import put_between

_numbers = itertools.count()


def entry(
    *rows: int, engine: str = "sim", outcome: str = "passed", test: str | None = None, **measured: float
) -> dict[str, Any]:
    name = test or f"t{next(_numbers)}"
    return {"test": name, "rows": rows, "engine": engine, "outcome": outcome, "measured": measured}


def green() -> list[dict[str, Any]]:
    """A passed test of every row, on each engine that is owed one."""
    owed = [number for number, row in ROWS.items() if row.no_vllm is None]
    return [entry(*ROWS, detect_s=0.2), entry(*owed, engine="vllm", detect_s=0.5)]


def cells(report: Report, number: int) -> list[str]:
    line = next(line for line in report.table().splitlines() if line.startswith(f"| {number} |"))
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_every_row_passed() -> None:
    report = Report(green())
    assert report.wrong() == []
    assert report.skipped() == []
    assert len(report.table().splitlines()) == 2 + len(ROWS)


def test_the_worst_figure_of_each_engine_is_shown() -> None:
    report = Report(
        [*green(), entry(1, detect_s=0.9, recover_s=2.0), entry(1, engine="vllm", detect_s=0.7, left=0)]
    )
    assert cells(report, 1)[3:5] == ["2", "passed"]
    assert cells(report, 1)[-1] == "yes (2), detect 0.7, left 0"
    assert "0.9" in cells(report, 1)


@pytest.mark.parametrize("engine", ["sim", "vllm"])
def test_one_failed_test_fails_its_row(engine: str) -> None:
    report = Report([*green(), entry(2, engine=engine, outcome="failed")])
    (wrong,) = report.wrong()
    assert wrong.startswith("row 2")
    assert "failed, passed" in wrong


def test_of_a_test_that_ran_again_the_last_run_counts() -> None:
    twice = [entry(2, outcome="failed", test="a", detect_s=9.0), entry(2, test="a", detect_s=0.3)]
    report = Report([*green(), *twice])
    assert report.wrong() == []
    assert cells(report, 2)[3] == "2"
    assert "9" not in cells(report, 2)
    assert Report([*green(), *reversed(twice)]).wrong() != []


def test_a_row_without_a_test_is_not_green() -> None:
    rows = [number for number in ROWS if number != 3]
    assert "row 3: no test" in Report([entry(*rows)]).wrong()


def test_a_row_that_is_owed_a_test_on_the_real_engine() -> None:
    """Where none ran there at all, the column says so, and the table of the look-alike may be green."""
    assert Report([entry(*ROWS)]).wrong() == []
    assert Report([entry(*ROWS)]).vllm(1) == "not in this run"
    report = Report([entry(*ROWS), entry(1, engine="vllm")])
    assert "row 2: no test of it ran against the real vLLM" in report.wrong()
    assert not [line for line in report.wrong() if line.startswith("row 13")]
    assert report.vllm(13) == ROWS[13].no_vllm


def test_skipped_is_said() -> None:
    report = Report([*green(), entry(33, outcome="skipped")])
    assert cells(report, 33)[4] == "passed, skipped"
    rows = [number for number in ROWS if number != 33]
    assert Report([entry(*rows), entry(33, outcome="skipped")]).skipped() == [33]


def test_the_record_stands_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nsome earlier table\n{MARKS[1]}\nafter\n", "utf-8")
    for _ in range(2):
        record(page, Report(green()), 600)
    text = page.read_text("utf-8")
    assert text.startswith(f"before\n{MARKS[0]}\nRevision ")
    assert text.endswith(f"\n{MARKS[1]}\nafter\n")
    assert "2 tests in 10 minutes" in text
    assert "some earlier table" not in text
    assert text.count("| 45 |") == 1


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n", "utf-8")
    with pytest.raises(ValueError, match="has no lines"):
        put_between(page, MARKS, "table")
    assert page.read_text("utf-8") == "nothing here\n"
