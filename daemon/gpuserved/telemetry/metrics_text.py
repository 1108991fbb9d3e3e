"""The few figures the daemon wants from an engine's Prometheus text, which may be long, broken or hostile."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from gpuserved.core.load import HISTOGRAMS, Scrape

CAP_BYTES = 4 * 1024 * 1024
"""vLLM writes some 100 KB; what is beyond this is not read."""

_SAMPLE = re.compile(rb'(?:\{(?:[^"{}\n]|"(?:[^"\\\n]|\\.)*")*\})?[ \t]+([^ \t\r\n]+)')
_BUCKET = re.compile(
    rb'\{(?:[^"{}\n]|"(?:[^"\\\n]|\\.)*")*?\ble="([^"]+)"(?:[^"{}\n]|"(?:[^"\\\n]|\\.)*")*\}[ \t]+([^ \t\r\n]+)'
)
_LABELS = re.compile(rb'\{((?:[^"{}\n]|"(?:[^"\\\n]|\\.)*")*)\}')
_LABEL = re.compile(rb'([A-Za-z_]\w*)="((?:[^"\\\n]|\\.)*)"')
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


def scrape(text: bytes, names: Mapping[str, str]) -> Scrape:
    """All that an engine's text says.

    :param names: fields of `Scrape` -> metrics.
    """
    numbers = read(text, frozenset(name for key, name in names.items() if key not in HISTOGRAMS))
    values: dict[str, Any] = {
        key: histogram(text, name) if key in HISTOGRAMS else numbers.get(name) for key, name in names.items()
    }
    return Scrape(**values)


def histogram(text: bytes, name: str) -> dict[float, float]:
    """A histogram's cumulative buckets summed over its other labels: upper bound -> observations. Empty: there is none."""
    found: dict[float, float] = {}
    wanted = f"{name}_bucket".encode()
    at = text.find(wanted, 0, CAP_BYTES)
    while at >= 0:
        end = at + len(wanted)
        if at == 0 or text[at - 1] == _NEWLINE:
            sample = _BUCKET.match(text, end)
            if sample is not None:
                bound, count = _bound(sample[1]), _number(sample[2])
                if bound is None or count is None:
                    return {}
                found[bound] = found.get(bound, 0.0) + count
        at = text.find(wanted, end, CAP_BYTES)
    return found


def labels(text: bytes, name: str) -> list[dict[str, str]]:
    """The labels of each sample of a metric whose value is in them (`..._info`)."""
    found = []
    at = text.find(name.encode(), 0, CAP_BYTES)
    while at >= 0:
        end = at + len(name)
        sample = _LABELS.match(text, end) if at == 0 or text[at - 1] == _NEWLINE else None
        if sample is not None:
            pairs = _LABEL.findall(sample[1])
            found.append({key.decode(): value.decode("utf-8", "replace") for key, value in pairs})
        at = text.find(name.encode(), end, CAP_BYTES)
    return found


def _bound(raw: bytes) -> float | None:
    return math.inf if raw == b"+Inf" else _number(raw)


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
