"""The whole allow-list, end to end. What a chat model serves runs against real vLLM too; the look-alike serves the rest beside it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from typing import Any

import pytest
import requests
from tests.e2e.clients import QUESTION
from tests.e2e.texts import SERVED, Fleet

from gpuserved.engines.sim.audio_routes import CLOSE, TEXT, accept_key, frame, read_frame

MIB = 1 << 20


def post(fleet: Fleet, route: str, **body: Any) -> requests.Response:
    return requests.post(f"{fleet.endpoint}{route}", json={"model": SERVED, **body}, timeout=60)


def ok(response: requests.Response) -> Any:
    assert response.status_code == 200, response.text
    assert response.headers["x-gpuserve-replica"] in {"tiny-0", "tiny-1"}
    return response.json()


@pytest.fixture
def lookalike(fleet: Fleet) -> Fleet:
    """The routes of pooling and speech models, which no chat model serves."""
    if fleet.flavour.engine != "sim":
        pytest.skip("a chat model does not serve this")
    return fleet


def test_messages_plain_streamed_and_counted(fleet: Fleet) -> None:
    plain = ok(post(fleet, "/v1/messages", messages=QUESTION, max_tokens=8))
    assert (plain["type"], plain["role"]) == ("message", "assistant")
    assert plain["usage"]["output_tokens"] > 0
    streamed = post(fleet, "/v1/messages", messages=QUESTION, max_tokens=8, stream=True)
    events = [line[7:] for line in streamed.text.splitlines() if line.startswith("event: ")]
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"
    assert ok(post(fleet, "/v1/messages/count_tokens", messages=QUESTION))["input_tokens"] > 0


def test_tokens_come_back_as_the_text_they_were(fleet: Fleet) -> None:
    tokens = ok(post(fleet, "/tokenize", prompt="My order is late.", add_special_tokens=False))["tokens"]
    assert ok(post(fleet, "/detokenize", tokens=tokens))["prompt"].strip() == "My order is late."


def test_a_response_is_made(fleet: Fleet) -> None:
    made = ok(post(fleet, "/v1/responses", input="My order is late.", max_output_tokens=8))
    assert made["object"] == "response"
    assert made["id"].startswith("resp_")
    assert made["usage"]["output_tokens"] > 0


def test_an_unknown_response_is_404_without_asking_a_replica(fleet: Fleet) -> None:
    answer = requests.get(f"{fleet.endpoint}/v1/responses/resp_nobody", timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")


def test_stored_responses_stay_with_the_replica_that_made_them(lookalike: Fleet) -> None:
    makers: dict[str, str] = {}
    for _ in range(8):
        made = post(lookalike, "/v1/responses", input="My order is late.", max_output_tokens=2)
        makers[ok(made)["id"]] = made.headers["x-gpuserve-replica"]
    assert set(makers.values()) == {"tiny-0", "tiny-1"}
    for identity, maker in makers.items():
        url = f"{lookalike.endpoint}/v1/responses/{identity}"
        found = requests.get(url, timeout=30)
        assert (ok(found)["id"], found.headers["x-gpuserve-replica"]) == (identity, maker)
        cancelled = requests.post(f"{url}/cancel", timeout=30)
        assert (cancelled.status_code, cancelled.headers["x-gpuserve-replica"]) == (400, maker)
        more = post(
            lookalike, "/v1/responses", input="And now?", previous_response_id=identity, max_output_tokens=2
        )
        assert more.headers["x-gpuserve-replica"] == maker


@pytest.mark.parametrize("route", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked(lookalike: Fleet, route: str) -> None:
    answer = ok(
        post(lookalike, route, query="late order", documents=["a cat", "late order please", "order"], top_n=2)
    )
    assert [row["index"] for row in answer["results"]] == [1, 2]
    assert answer["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("route", ["/score", "/v1/score"])
def test_pairs_are_scored(lookalike: Fleet, route: str) -> None:
    rows = ok(post(lookalike, route, text_1="late order", text_2=["a cat", "late order"]))["data"]
    assert rows[0]["score"] < rows[1]["score"]


def test_vectors_classes_and_poolings_answer(lookalike: Fleet) -> None:
    vectors = ok(post(lookalike, "/v1/embeddings", input=["one", "two"]))["data"]
    assert [len(row["embedding"]) for row in vectors] == [64, 64]
    assert ok(post(lookalike, "/classify", input=["one"]))["data"][0]["label"].startswith("LABEL_")
    assert ok(post(lookalike, "/pooling", input=["one"]))["data"][0]["object"] == "pooling"


@pytest.mark.parametrize("route", ["/v1/audio/transcriptions", "/v1/audio/translations"])
@pytest.mark.parametrize("size", [1000, 5 * MIB])
def test_forms_with_a_file_arrive_whole_spooled_or_not(lookalike: Fleet, route: str, size: int) -> None:
    audio = os.urandom(size)
    answer = requests.post(
        f"{lookalike.endpoint}{route}", data={"model": SERVED}, files={"file": ("a.wav", audio)}, timeout=60
    )
    assert ok(answer)["text"] == f"heard {hashlib.sha256(audio).hexdigest()[:16]} in {size} bytes"


def test_a_form_without_a_model_is_told_where_it_belongs(fleet: Fleet) -> None:
    answer = requests.post(
        f"{fleet.endpoint}/v1/audio/transcriptions", files={"file": ("a.wav", b"x" * 100)}, timeout=30
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_required")


def test_a_large_prompt_is_spooled_and_answered_whole(fleet: Fleet) -> None:
    # Longer than the context: the engine says so itself, and with its own words.
    answer = post(fleet, "/v1/completions", prompt="late " * (600 * 1024), max_tokens=1)
    assert answer.status_code == 400, answer.text
    assert "x-gpuserve-replica" in answer.headers
    assert "context" in answer.text or "length" in answer.text


async def test_realtime_is_a_websocket_to_one_replica(lookalike: Fleet) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", lookalike.port)
    key = base64.b64encode(b"0123456789abcdef").decode()
    writer.write(
        f"GET /v1/realtime?model={SERVED} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert accept_key(key) in head

    async def hear() -> dict[str, Any]:
        message = await asyncio.wait_for(read_frame(reader), 30)
        assert message is not None
        event: dict[str, Any] = json.loads(message)
        return event

    def say(**event: str) -> None:
        writer.write(frame(TEXT, json.dumps(event).encode(), mask=b"mask"))

    assert (await hear())["type"] == "session.created"
    audio = os.urandom(100_000)
    say(type="input_audio_buffer.append", audio=base64.b64encode(audio).decode())
    say(type="input_audio_buffer.commit")
    events = [await hear() for _ in range(4)]
    assert [event["type"] for event in events] == ["transcription.delta"] * 3 + ["transcription.done"]
    assert events[-1]["text"] == "heard 100000 bytes"
    writer.write(frame(CLOSE, b"", mask=b"mask"))
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
