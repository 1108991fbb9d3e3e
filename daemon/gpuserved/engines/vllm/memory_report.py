"""What vLLM's log says of memory at a start: its own figures, which beat any estimate.

Lines of 0.26 to 0.33; with tensor parallel every worker may write its own. Where figures differ the tighter one is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpuserved.engines.base import MemoryReport

GIB = 1024**3
_WEIGHTS = re.compile(r"Model loading took (?P<gib>[\d.]+) GiB")
_AVAILABLE = re.compile(r"Available KV cache memory: (?P<gib>-?[\d.]+) GiB")
_TOKENS = re.compile(r"\bGPU KV cache size: (?P<tokens>[\d,]+) tokens")
_GRAPHS = re.compile(
    r"Estimated CUDA graph memory: (?P<gib>[\d.]+) GiB|Graph capturing finished in .* took (?P<taken>-?[\d.]+) GiB"
)
_PEAK = re.compile(r"(?P<gib>[\d.]+) GiB for peak activation")


def read(lines: Iterable[str]) -> MemoryReport | None:
    """The figures of the last start in these lines; None: they do not say how large the KV cache is."""
    found: dict[str, list[int]] = {}
    for line in lines:
        if match := _WEIGHTS.search(line):
            found.setdefault("weights", []).append(_bytes(match["gib"]))
        elif match := _AVAILABLE.search(line):
            found.setdefault("available", []).append(_bytes(match["gib"]))
        elif match := _GRAPHS.search(line):
            found.setdefault("graphs", []).append(max(0, _bytes(match["gib"] or match["taken"])))
        elif match := _TOKENS.search(line):
            found.setdefault("tokens", []).append(int(match["tokens"].replace(",", "")))
        if match := _PEAK.search(line):
            found.setdefault("peak", []).append(_bytes(match["gib"]))
    if "available" not in found:
        return None
    return MemoryReport(
        kv_cache_bytes=min(found["available"]),
        kv_cache_tokens=min(found["tokens"], default=None) if "tokens" in found else None,
        weights_bytes=max(found["weights"]) if "weights" in found else None,
        activation_bytes=max(found["peak"]) if "peak" in found else None,
        graph_bytes=max(found["graphs"]) if "graphs" in found else None,
    )


def _bytes(gib: str) -> int:
    return int(float(gib) * GIB)
