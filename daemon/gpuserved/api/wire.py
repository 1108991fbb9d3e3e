"""The control API's paths and limits, for the server and the client alike."""

from __future__ import annotations

PREFIX = "/v1"
PROTOCOL_HEADER = "X-Gpuserve-Protocol"
READ_ONLY_HEADER = "X-Gpuserve-Read-Only"
"""A client that sends it is refused every change, whatever its user may do."""
BODY_MAX_BYTES = 4 * 1024 * 1024
"""An `apply` carries profiles as text: a few KiB each."""
READ_LIMIT_S = 15.0
"""Until the daemon answers a question from memory, or says why it cannot."""
CHANGE_LIMIT_S = 300.0
"""Until it answers a change, a plan or a search of logs: `apply` may learn a new vLLM's flags first, minutes from a cold network disk."""
CLIENT_MARGIN_S = 5.0
"""A client waits longer than the daemon's limit by this, so that it hears what the daemon has to say."""
LOG_LINES_MAX = 100_000
PAGE_LINES_MAX = 5_000
LOG_SOURCES_MAX = 256
OPERATE_GROUP = "gpuserve"
