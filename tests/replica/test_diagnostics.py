from __future__ import annotations

import pytest

from gpuserved.replica.diagnostics import MASK, _masked


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("token=hf_AbCdEfGhIjKl for the hub", f"token={MASK} for the hub"),
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {MASK}"),
        ("api_key='sk-live-12345678'", f"api_key='{MASK}'"),
        ("the daemon's own: 0123opaque", f"the daemon's own: {MASK}"),
        ("RuntimeError: no secret here", "RuntimeError: no secret here"),
    ],
)
def test_credentials_do_not_reach_the_card(line: str, shown: str) -> None:
    assert _masked([line], "0123opaque") == [shown]
