"""What a daemon of 0.1.0 finds that imports an engine after the files of this release have replaced its own.

It imported an engine when it met the engine's first profile. What the engine stands on is in its memory, from its own release, so
the adapter of this one would not fit it. The old paths of the adapters lead here, until 0.3.0.
"""

from __future__ import annotations


class Replaced:
    """In the place of an adapter."""

    def __init__(self, *_: object, **__: object) -> None:
        from gpuserved.api.errors import Refused  # here: the llamacpp server's interpreter has no msgspec

        raise Refused(
            "gpuserve's files have been replaced since this daemon started, and it has not used this engine yet",
            "gpuserve upgrade lets the new version take over; replicas and requests go on",
        )
