"""The allow-list: every method and path a client may use. What is not here is 404, the engine's own routes included."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote


class Kind(str, Enum):
    """Where the model's name is, or which of our own answers it is."""

    JSON = "json"
    MULTIPART = "multipart"
    RESPONSE_ID = "response_id"
    """By the id of a response: to the replica that made it."""
    UPGRADE = "upgrade"
    """In the query; the connection becomes a WebSocket."""
    MODELS = "models"
    MODEL = "model"
    HEALTH = "health"
    METRICS = "metrics"


LOCAL = frozenset({Kind.MODELS, Kind.MODEL, Kind.HEALTH, Kind.METRICS})
"""Answered by the router itself."""


class Sse(str, Enum):
    """How a broken stream tells its client."""

    OPENAI = "openai"
    """`data: {"error": ...}`, then `data: [DONE]`."""
    TYPED = "typed"
    """`event: error` with the object as data."""


@dataclass(frozen=True)
class Route:
    """One entry of the allow-list."""

    kind: Kind
    sse: Sse = Sse.OPENAI
    stores: bool = False
    """The engine may keep what it answers (responses)."""
    open: bool = False
    """Needs no key."""


@dataclass(frozen=True)
class Match:
    """A route and what its path named."""

    route: Route
    id: str | None = None


_JSON = Route(Kind.JSON)
_EXACT: dict[tuple[str, str], Route] = {
    ("POST", "/v1/chat/completions"): _JSON,
    ("POST", "/v1/completions"): _JSON,
    ("POST", "/v1/embeddings"): _JSON,
    ("POST", "/v1/responses"): Route(Kind.JSON, sse=Sse.TYPED, stores=True),
    ("POST", "/v1/messages"): Route(Kind.JSON, sse=Sse.TYPED),
    ("POST", "/v1/messages/count_tokens"): Route(Kind.JSON, sse=Sse.TYPED),
    ("POST", "/v1/audio/speech"): _JSON,
    ("POST", "/v1/audio/transcriptions"): Route(Kind.MULTIPART),
    ("POST", "/v1/audio/translations"): Route(Kind.MULTIPART),
    ("POST", "/rerank"): _JSON,
    ("POST", "/v1/rerank"): _JSON,
    ("POST", "/v2/rerank"): _JSON,
    ("POST", "/score"): _JSON,
    ("POST", "/v1/score"): _JSON,
    ("POST", "/classify"): _JSON,
    ("POST", "/pooling"): _JSON,
    ("POST", "/tokenize"): _JSON,
    ("POST", "/detokenize"): _JSON,
    ("GET", "/v1/realtime"): Route(Kind.UPGRADE),
    ("GET", "/v1/models"): Route(Kind.MODELS),
    ("GET", "/health"): Route(Kind.HEALTH, open=True),
    ("GET", "/metrics"): Route(Kind.METRICS),
}
_MATCHES = {request: Match(route) for request, route in _EXACT.items()}
_MODEL = Route(Kind.MODEL)
_BY_ID = Route(Kind.RESPONSE_ID, sse=Sse.TYPED)
_MODELS_PREFIX = "/v1/models/"
_RESPONSES_PREFIX = "/v1/responses/"
_CANCEL = "/cancel"


def _plain_id(text: str) -> bool:
    return 0 < len(text) <= 256 and all(c.isascii() and (c.isalnum() or c in "_-") for c in text)


def match(method: str, path: str) -> Match | None:
    """The route of a request; None: not on the list. HEAD may what GET may. `path` is as the client wrote it, without the query."""
    if method == "HEAD":
        method = "GET"
    found = _MATCHES.get((method, path))
    if found is not None:
        return found
    if method == "GET" and path.startswith(_MODELS_PREFIX) and len(path) > len(_MODELS_PREFIX):
        return Match(_MODEL, unquote(path[len(_MODELS_PREFIX) :]))
    if path.startswith(_RESPONSES_PREFIX):
        rest = path[len(_RESPONSES_PREFIX) :]
        if method == "POST" and rest.endswith(_CANCEL):
            rest = rest[: -len(_CANCEL)]
        elif method != "GET":
            return None
        return Match(_BY_ID, rest) if _plain_id(rest) else None
    return None
