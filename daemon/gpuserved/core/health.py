"""Liveness by consecutive probe results."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ProbeRow:
    """Counts failures in a row; one success clears them."""

    failures: int = 0

    def seen(self, ok: bool) -> ProbeRow:
        """The row after one more probe."""
        return replace(self, failures=0 if ok else self.failures + 1)

    def down(self, threshold: int) -> bool:
        """True once `threshold` probes failed in a row."""
        return self.failures >= threshold
