"""Times as operators type them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import pytest

from gpuserved.cli.events import moment_at

NOW = 1_795_560_000.0  # 2026-11-24 22:40:00 UTC


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "ago_s"),
    [
        ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172_800), ("22:30", 600), ("22:39:30", 30), ("22:41", 86_340),
        ("2026-11-24", 81_600), ("2026-11-24 21:40", 3600), ("2026-11-24T21:40:00", 3600), (str(int(NOW) - 7), 7),
    ],
)  # fmt: skip
def test_times(text: str, ago_s: float) -> None:
    assert NOW - moment_at(text, NOW) == pytest.approx(ago_s)


@pytest.mark.parametrize("text", ["", "10", "10x", "-5m", "25:00", "tomorrow", "2026-13-01"])
def test_no_times(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="10m, 2h, 1d"):
        moment_at(text, NOW)
