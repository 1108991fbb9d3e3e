"""The allow-list, as the APIs that clients know describe their routes."""

from __future__ import annotations

import pytest

from gpuserved.core.routes import LOCAL, Kind, Match, Route, Sse, match

JSON = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/audio/speech", "/rerank", "/v1/rerank", "/v2/rerank",
    "/score", "/v1/score", "/classify", "/pooling", "/tokenize", "/detokenize",
)  # fmt: skip
OTHERS = {
    ("POST", "/v1/responses"): Route(Kind.JSON, Sse.TYPED, stores=True),
    ("POST", "/v1/messages"): Route(Kind.JSON, Sse.TYPED),
    ("POST", "/v1/messages/count_tokens"): Route(Kind.JSON, Sse.TYPED),
    ("POST", "/v1/audio/transcriptions"): Route(Kind.MULTIPART),
    ("POST", "/v1/audio/translations"): Route(Kind.MULTIPART),
    ("GET", "/v1/realtime"): Route(Kind.UPGRADE),
    ("GET", "/v1/models"): Route(Kind.MODELS),
    ("GET", "/health"): Route(Kind.HEALTH, open=True),
    ("GET", "/metrics"): Route(Kind.METRICS),
}
ALL = {("POST", path): Route(Kind.JSON, Sse.OPENAI, stores=False, open=False) for path in JSON} | OTHERS


@pytest.mark.parametrize(("method", "path"), ALL)
def test_a_route_is_known_by_its_method_and_whole_path(method: str, path: str) -> None:
    assert match(method, path) == Match(ALL[method, path], None)
    assert match("HEAD", path) == match("GET", path), "HEAD may what GET may"
    for other in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get", "head", ""} - {method}:
        assert match(other, path) is None
    for near in (path + "/", path + "x", path[:-1], path[1:], path.upper(), "/" + path, path + "?a=b"):
        assert match(method, near) is None


def test_only_health_needs_no_key_and_four_are_answered_by_the_router() -> None:
    assert [path for (_, path), route in ALL.items() if route.open] == ["/health"]
    assert {Kind.MODELS, Kind.MODEL, Kind.HEALTH, Kind.METRICS} == LOCAL


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/models/a", "a"), ("/v1/models/meta/llama", "meta/llama"), ("/v1/models/meta%2Fllama%20b", "meta/llama b")],
)  # fmt: skip
def test_one_model_by_its_name(path: str, name: str) -> None:
    assert match("GET", path) == Match(Route(Kind.MODEL), name)
    assert match("POST", path) is None
    assert match("GET", "/v1/models/") is None


@pytest.mark.parametrize("name", ["resp_1", "a", "A-b_9", "x" * 256])
def test_a_stored_response_by_its_id(name: str) -> None:
    found = Match(Route(Kind.RESPONSE_ID, Sse.TYPED), name)
    assert match("GET", f"/v1/responses/{name}") == found
    assert match("POST", f"/v1/responses/{name}/cancel") == found
    for method, path in [
        ("POST", ""),
        ("DELETE", ""),
        ("GET", "/cancel"),
        ("DELETE", "/cancel"),
        ("POST", "/cancel/cancel"),
    ]:
        assert match(method, f"/v1/responses/{name}{path}") is None


@pytest.mark.parametrize("name", ["", "x" * 257, "a/b", "..", "a.b", "a%20b", "\u00e4", "\u0663", "a b"])
def test_what_is_no_id(name: str) -> None:
    assert match("GET", f"/v1/responses/{name}") is None
    assert match("POST", f"/v1/responses/{name}/cancel") is None
