"""The few figures the daemon wants from an engine's Prometheus text, which may be long, broken or hostile."""

from __future__ import annotations

import math
import re

CAP_BYTES = 4 * 1024 * 1024
"""vLLM writes some 100 KB; what is beyond this is not read."""

_SAMPLE = re.compile(rb'(?:\{(?:[^"{}\n]|"(?:[^"\\\n]|\\.)*")*\})?[ \t]+([^ \t\r\n]+)')
_NEWLINE = 0x0A


def read(text: bytes, names: frozenset[str]) -> dict[str, float]:
    """Each wanted metric summed over its labels. One that is absent, not a number or not finite has no entry.

    Names are sought, not lines parsed: eight replicas a second cost the supervisor next to nothing.
    """
    if len(text) > CAP_BYTES:
        text = text[: text.rfind(b"\n", 0, CAP_BYTES) + 1]
    found: dict[str, float] = {}
    for name in names:
        total = _total(text, name.encode())
        if total is not None:
            found[name] = total
    return found


def _total(text: bytes, name: bytes) -> float | None:
    total: float | None = None
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        if at == 0 or text[at - 1] == _NEWLINE:
            sample = _SAMPLE.match(text, end)
            if sample is not None:
                value = _number(sample[1])
                if value is None:
                    return None
                total = value if total is None else total + value
        at = text.find(name, end)
    return total


def _number(raw: bytes) -> float | None:
    try:
        value = float(raw)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
