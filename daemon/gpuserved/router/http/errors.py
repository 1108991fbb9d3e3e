"""What a client is told when the router itself answers: OpenAI error objects."""

from __future__ import annotations

import msgspec

REASONS = {
    100: "Continue", 101: "Switching Protocols", 200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found",
    408: "Request Timeout", 413: "Content Too Large", 417: "Expectation Failed", 426: "Upgrade Required",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip


class HttpError(Exception):
    """The router's own answer instead of a replica's.

    :param kind: OpenAI's `type`; :param code: OpenAI's `code`, a word a program can test.
    :param retry_after_s: becomes a Retry-After header.
    :param final: tells the SDKs of OpenAI and Anthropic, which retry 5xx by themselves, not to.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str,
        code: str,
        retry_after_s: int | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.retry_after_s = retry_after_s
        self.final = final

    def body(self) -> bytes:
        """The JSON error object. Its outer `type` is what Anthropic's clients look for; OpenAI's ignore it."""
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return msgspec.json.encode({"type": "error", "error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Extra headers of the answer."""
        out = [(b"x-should-retry", b"false")] if self.final else []
        if self.retry_after_s is not None:
            out.append((b"retry-after", str(self.retry_after_s).encode()))
        return out


def bad_request(message: str, code: str = "invalid_request") -> HttpError:
    """400."""
    return HttpError(400, message, kind="invalid_request_error", code=code)


def too_large(limit_bytes: int) -> HttpError:
    """413."""
    return HttpError(
        413, f"The body is larger than {limit_bytes} bytes.", kind="invalid_request_error", code="body_too_large"
    )  # fmt: skip


def head_too_large() -> HttpError:
    """431."""
    return HttpError(
        431, "The request's headers are too large or too many.", kind="invalid_request_error", code="head_too_large"
    )  # fmt: skip


def no_room() -> HttpError:
    """503: the temporary folder is full."""
    return HttpError(
        503, "The router has no room to hold this body.", kind="service_unavailable", code="no_room", retry_after_s=5
    )  # fmt: skip


def slow(what: str) -> HttpError:
    """408."""
    return HttpError(
        408, f"The request's {what} did not arrive in time.", kind="invalid_request_error", code="timeout"
    )


def no_route(method: str, path: str) -> HttpError:
    """404 for what is not on the allow-list."""
    shown = path if len(path) <= 200 else path[:200] + "..."
    return HttpError(
        404, f"No such route: {method} {shown}", kind="invalid_request_error", code="unknown_url"
    )


def no_model(name: str, valid: list[str]) -> HttpError:
    """404 with the names that would work."""
    shown = name if len(name) <= 200 else name[:200] + "..."
    known = ", ".join(valid) if valid else "none yet"
    return HttpError(
        404, f"The model '{shown}' does not exist. Models served here: {known}.",
        kind="invalid_request_error", code="model_not_found",
    )  # fmt: skip


def no_response(identity: str) -> HttpError:
    """404 for a response nobody here made, or whose replica is gone."""
    return HttpError(
        404, f"Response '{identity}' is not known here: no replica made it, or that one is gone.",
        kind="invalid_request_error", code="response_not_found",
    )  # fmt: skip


def unauthorized() -> HttpError:
    """401."""
    return HttpError(
        401, "Missing or wrong API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`.",
        kind="invalid_request_error", code="invalid_api_key",
    )  # fmt: skip


def queue_full(model: str) -> HttpError:
    """429."""
    return HttpError(
        429, f"Too many requests already wait for a replica of '{model}'.",
        kind="rate_limit_error", code="queue_full", retry_after_s=1,
    )  # fmt: skip


def rate_limited(key: str, what: str, retry_after_s: int, *, final: bool) -> HttpError:
    """429 for a key's own limit."""
    return HttpError(
        429, f"The API key '{key}' has used up its {what}; try again in {retry_after_s} s.",
        kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry_after_s, final=final,
    )  # fmt: skip


def none_ready(model: str) -> HttpError:
    """503 after waiting."""
    return HttpError(
        503, f"No replica of '{model}' became ready in time.",
        kind="service_unavailable", code="no_replica_ready", retry_after_s=5,
    )  # fmt: skip


def removed(model: str) -> HttpError:
    """503: it was taken out of service while the request waited."""
    return HttpError(
        503, f"'{model}' is no longer served here.", kind="service_unavailable", code="model_removed", retry_after_s=5
    )  # fmt: skip


def bad_expectation() -> HttpError:
    """417."""
    return HttpError(
        417, "Only `Expect: 100-continue` is known.", kind="invalid_request_error", code="expectation_failed"
    )


def no_upgrade() -> HttpError:
    """426."""
    return HttpError(
        426, "This route is a WebSocket: send an upgrade.", kind="invalid_request_error", code="upgrade_required"
    )  # fmt: skip


def upgrade_refused(status: int) -> HttpError:
    """The replica's own refusal, as far as it is one we know."""
    return HttpError(
        status if status in REASONS and status >= 400 else 502,
        f"The replica refused to upgrade the connection (status {status}).",
        kind="invalid_request_error", code="upgrade_refused",
    )  # fmt: skip


def overloaded() -> HttpError:
    """503 at the connection cap."""
    return HttpError(
        503, "Too many connections.", kind="service_unavailable", code="overloaded", retry_after_s=1
    )


def replica_failed(why: str) -> HttpError:
    """502."""
    return HttpError(
        502, f"The replica failed before it answered, and {why}.", kind="replica_died", code="replica_failed"
    )


def blocked(deaths: int) -> HttpError:
    """502: it has killed as many replicas as one request may."""
    return HttpError(
        502, f"This request is blocked: {deaths} replicas died while they served it.",
        kind="replica_died", code="request_blocked", final=True,
    )  # fmt: skip


def bad_answer(why: str) -> HttpError:
    """502 for an answer that is not HTTP as we trust it."""
    return HttpError(
        502, f"The replica's answer was malformed: {why}.", kind="bad_gateway", code="bad_upstream_answer"
    )


def deadline() -> HttpError:
    """504 when the client's own deadline passed."""
    return HttpError(
        504, "The deadline of X-Request-Timeout passed before the answer began.", kind="timeout", code="deadline_exceeded"
    )  # fmt: skip


def internal() -> HttpError:
    """500: our fault."""
    return HttpError(
        500, "Internal error of the router; see its log.", kind="internal_error", code="internal_error"
    )
