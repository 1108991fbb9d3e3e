"""The control API's paths and limits, for the server and the client alike."""

from __future__ import annotations

PREFIX = "/v1"
PROTOCOL_HEADER = "X-Gpuserve-Protocol"
BODY_MAX_BYTES = 4 * 1024 * 1024
"""An `apply` carries profiles as text: a few KiB each."""
LOG_LINES_MAX = 100_000
OPERATE_GROUP = "gpuserve"
