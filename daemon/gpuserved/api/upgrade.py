"""Wire types of an upgrade: one version of gpuserve takes over from another under load."""

from __future__ import annotations

from gpuserved.api.types import Answer, Request


class UpgradeRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/upgrade`: let the gpuserve of this interpreter take over. It is code execution, as `apply` is.

    :param python: its interpreter, an absolute path.
    :param pythonpath: its PYTHONPATH; None: without one.
    """

    python: str
    pythonpath: str | None = None


class UpgradeAccepted(Answer, frozen=True, kw_only=True):
    """It runs there and can work with this configuration and state; the hand-over begins after this answer."""

    version: str
