"""A moment of the past as operators type it."""

from __future__ import annotations

import argparse
import time

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment(text: str) -> float:
    """Unix seconds of `10m` (ago), `21:50` (the last time it was), `2026-11-24 21:50`, or Unix seconds.

    :raises argparse.ArgumentTypeError: it is none of these.
    """
    return moment_at(text, time.time())


def moment_at(text: str, now: float) -> float:
    """See `moment`; `now`: Unix seconds."""
    import re
    from datetime import datetime

    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if ago:
        return now - float(ago[1]) * _UNITS_S[ago[2]]
    if re.fullmatch(r"\d{9,10}(?:\.\d+)?", text):
        return float(text)
    clock = re.fullmatch(r"\d\d:\d\d(?::\d\d)?", text)
    today = datetime.fromtimestamp(now)
    try:
        found = datetime.fromisoformat(f"{today.date()}T{text}" if clock else text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: 10m, 2h, 1d (ago), 21:50, or 2026-11-24T21:50"
        ) from None
    return found - 86_400 if clock and found > now else found


moment.__name__ = "time"  # argparse shows the name
