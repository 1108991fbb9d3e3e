"""What the command palette offers."""

from __future__ import annotations

from textual.widgets import OptionList

from gpuserve_tui.app import FleetApp


def offered(app: FleetApp) -> str:
    """What it has found so far, in lower case."""
    found = app.screen.query_one(OptionList)
    return " ".join(str(found.get_option_at_index(n).prompt) for n in range(found.option_count)).lower()
