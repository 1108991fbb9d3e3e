"""The control API's errors: one body `{code, message, hint, detail}`, one exception class per code on both sides."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=False):
    """What a failed control call answers with."""

    code: str
    message: str
    hint: str | None = None
    detail: dict[str, Any] | None = None


class GpuserveError(Exception):
    """Base of everything an operator is told. `message` says what is wrong, `hint` what to do next."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None, detail: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def body(self) -> ErrorBody:
        """The wire form."""
        return ErrorBody(self.code, self.message, self.hint, self.detail)


class Invalid(GpuserveError):
    """The caller's input is wrong: usage, profile or configuration."""

    code = "invalid"
    http_status = 400
    exit_code = 2


class NotFound(GpuserveError):
    """No such replica, profile, GPU or route."""

    code = "not_found"
    http_status = 404
    exit_code = 2


class Denied(GpuserveError):
    """The peer may look but not operate."""

    code = "denied"
    http_status = 403
    exit_code = 1


class Conflict(GpuserveError):
    """The thing moved since the caller looked, or its state does not know the request."""

    code = "conflict"
    http_status = 409
    exit_code = 1


class Refused(GpuserveError):
    """Understood and not done: it does not fit, or would not be safe."""

    code = "refused"
    http_status = 422
    exit_code = 4


class Unavailable(GpuserveError):
    """No daemon answers."""

    code = "unavailable"
    http_status = 503
    exit_code = 3


class TimedOut(GpuserveError):
    """Not done within the time given."""

    code = "timed_out"
    http_status = 504
    exit_code = 5


class Internal(GpuserveError):
    """Our fault."""


CLASSES: dict[str, type[GpuserveError]] = {
    cls.code: cls for cls in (Invalid, NotFound, Denied, Conflict, Refused, Unavailable, TimedOut, Internal)
}


def from_body(body: ErrorBody) -> GpuserveError:
    """The exception a client raises for a body; an unknown code becomes `Internal`."""
    return CLASSES.get(body.code, Internal)(body.message, body.hint, body.detail)
