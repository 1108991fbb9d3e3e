from __future__ import annotations

import pytest

from gpuserve_tui import format as fmt

GIB = 1024**3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0s"), (0.44, "0.4s"), (12.9, "12s"), (200, "3m20s"), (18120, "5h02m"), (273600, "3d04h")],
)
def test_ages(seconds: float, text: str) -> None:
    assert fmt.age(seconds) == text


@pytest.mark.parametrize(
    ("used", "total", "text"),
    [
        (None, 80 * GIB, "-"),
        (0, None, "-"),
        (0, 80 * GIB, "░░░░░░░░░░ 0.0/80.0"),
        (80 * GIB, 80 * GIB, "██████████ 80.0/80.0"),
        (90 * GIB, 80 * GIB, "██████████ 90.0/80.0"),
    ],
)
def test_memory(used: int | None, total: int | None, text: str) -> None:
    assert fmt.memory(used, total).plain == text


def test_unknown_is_not_zero() -> None:
    assert fmt.number(None, "%").plain == "-"
    assert fmt.number(0, "%").plain == "0%"
    assert fmt.cell(None).plain == "-"
    assert fmt.cell("").plain == ""


def test_plain_is_one_printable_line() -> None:
    assert fmt.plain("a\x1b[31m\nb\u202ec é") == "a·[31m·b·c é"
