"""Bodies, streams and errors are those of vLLM 0.32."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from tests.e2e.box import free_port

MESSAGES = [{"role": "user", "content": "My order is late."}]


def test_health_ping_version_and_load_answer_as_vllm(shared: Any) -> None:
    health = shared.http.get("/health")
    assert (health.status_code, health.content) == (200, b"")
    assert shared.http.get("/ping").status_code == shared.http.post("/ping").status_code == 200
    assert shared.http.get("/version").json() == {"version": "0.32.0"}
    assert shared.http.get("/load").json() == {"server_load": 0}


def test_model_card_names_length_and_root(shared: Any) -> None:
    (card,) = shared.http.get("/v1/models").json()["data"]
    assert (card["id"], card["root"], card["max_model_len"], card["owned_by"]) == (
        "sim",
        "sim/m",
        2048,
        "vllm",
    )


def test_chat_answers_the_same_words_for_the_same_prompt_and_counts_tokens(shared: Any) -> None:
    first, second = shared.chat(max_tokens=12).json(), shared.chat(max_tokens=12).json()
    choice = first["choices"][0]
    assert choice == second["choices"][0]
    assert first["object"] == "chat.completion"
    assert first["id"].startswith("chatcmpl-")
    assert first["id"] != second["id"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    counted = shared.http.post("/tokenize", json={"messages": MESSAGES}).json()["count"]
    assert first["usage"] == {
        "prompt_tokens": counted, "total_tokens": counted + 12, "completion_tokens": 12,
        "prompt_tokens_details": None, "completion_tokens_details": None,
    }  # fmt: skip
    assert (
        shared.chat("Where is my parcel?", max_tokens=12).json()["choices"][0]["message"] != choice["message"]
    )


def test_request_id_of_the_client_becomes_the_answers_id(shared: Any) -> None:
    answer = shared.http.post("/v1/chat/completions", json=_body(), headers={"X-Request-Id": "abc123"}).json()
    assert answer["id"] == "chatcmpl-abc123"


def test_stream_has_role_first_reason_in_the_last_content_chunk_then_usage_then_done(
    shared: Any, tools: Any
) -> None:
    with shared.stream(max_tokens=5, stream_options={"include_usage": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        first, *content, usage, done = tools.events(answer.iter_lines())
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in content] == [None] * 4 + ["length"]
    assert "stop_reason" in content[-1]["choices"][0]
    assert "stop_reason" not in content[0]["choices"][0]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert usage["system_fingerprint"].startswith("vllm-0.32.0-")
    assert done == "[DONE]"
    whole = shared.chat(max_tokens=5).json()["choices"][0]["message"]["content"]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in content) == whole


def test_stream_without_usage_carries_the_fingerprint_in_the_last_chunk(shared: Any, tools: Any) -> None:
    with shared.stream(max_tokens=3) as answer:
        *_, last, done = tools.events(answer.iter_lines())
    assert done == "[DONE]"
    assert last["choices"][0]["finish_reason"] == "length"
    assert "system_fingerprint" in last


def test_stop_string_cuts_the_text_and_is_named(shared: Any, tools: Any) -> None:
    whole = shared.chat(max_tokens=40).json()["choices"][0]["message"]["content"]
    stop = whole.split()[3]
    choice = shared.chat(max_tokens=40, stop=[stop, "never said"]).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    with shared.stream(max_tokens=40, stop=stop) as answer:
        chunks = tools.events(answer.iter_lines())[1:-1]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole[: whole.index(stop)]


def test_an_answer_ends_by_itself_unless_end_of_sequence_is_ignored(shared: Any) -> None:
    natural = shared.chat(max_tokens=500).json()
    assert natural["choices"][0]["finish_reason"] == "stop"
    longer = shared.chat(max_tokens=500, min_tokens=200).json()["usage"]["completion_tokens"]
    assert natural["usage"]["completion_tokens"] < 200 <= longer
    forced = shared.chat(max_tokens=300, ignore_eos=True).json()
    assert (forced["choices"][0]["finish_reason"], forced["usage"]["completion_tokens"]) == ("length", 300)


def test_seed_changes_the_words_only_above_temperature_zero(shared: Any) -> None:
    def words(**more: Any) -> str:
        return str(shared.chat(max_tokens=30, **more).json()["choices"][0]["message"]["content"])

    assert words(seed=1) != words(seed=2)
    assert words(seed=1, temperature=0) == words(seed=2, temperature=0)


def test_several_choices(shared: Any, tools: Any) -> None:
    choices = shared.chat(n=3).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in choices}) == 3
    with shared.stream(n=2, max_tokens=4) as answer:
        chunks = tools.events(answer.iter_lines())
    ends = [chunk["choices"][0]["index"] for chunk in chunks[:-1] if chunk["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_completions_take_text_tokens_and_lists(shared: Any) -> None:
    def ask(prompt: Any, **more: Any) -> Any:
        return shared.http.post("/v1/completions", json={"model": "sim", "prompt": prompt, **more}).json()

    text = ask("Hello there", echo=True, max_tokens=3)
    assert text["object"] == "text_completion"
    assert text["choices"][0]["text"].startswith("Hello there")
    tokens = shared.http.post("/tokenize", json={"prompt": "Hello there"}).json()["tokens"]
    assert (
        ask(tokens, max_tokens=3)["choices"][0]["text"]
        == ask("Hello there", max_tokens=3)["choices"][0]["text"]
    )
    many = ask(["a b", "c d e"])
    assert [choice["index"] for choice in many["choices"]] == [0, 1]
    assert many["usage"]["completion_tokens"] == 32


def test_tokens_become_the_same_text_again(shared: Any) -> None:
    text = "Grüße, 你好! my order #42\n\tlate "
    answer = shared.http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    back = shared.http.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": text}


def _body(**more: Any) -> dict[str, Any]:
    return {"model": "sim", "messages": MESSAGES, "max_tokens": 2, **more}


BAD = [
    (_body(model="nope"), 404, "NotFoundError", "model", "The model `nope` does not exist. Valid aliases: sim."),
    (_body(max_tokens=5000), 400, "BadRequestError", "max_tokens", "cannot be greater than max_model_len=2048"),
    (_body(max_tokens=0), 400, "BadRequestError", "max_tokens", "max_tokens must be at least 1, got 0."),
    (_body(max_tokens="many"), 400, "Bad Request", "body.max_tokens", "unable to parse string as an integer"),
    (_body(temperature=-1), 400, "BadRequestError", "temperature", "temperature must be non-negative, got -1.0."),
    (_body(top_p=2), 400, "BadRequestError", "top_p", "top_p must be in (0, 1], got 2.0."),
    (_body(n=0), 400, "BadRequestError", None, "n must be at least 1, got 0."),
    (_body(messages=[]), 400, "BadRequestError", None, "empty conversation"),
    (_body(messages="x"), 400, "Bad Request", "body.messages", "Input should be a valid list"),
    ({"model": "sim"}, 400, "Bad Request", "body.messages", "Field required"),
    (_body(stream_options={"include_usage": True}), 400, "BadRequestError", "stream_options", "`stream=True`"),
    (_body(messages=[{"role": "user", "content": "late " * 3000}]), 400, "BadRequestError", "input_tokens", "maximum context length is 2048"),
    ([1], 400, "Bad Request", "body", "valid dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "status", "kind", "param", "message"), BAD)
def test_bad_requests_get_vllms_error_bodies(
    shared: Any, content: Any, status: Any, kind: Any, param: Any, message: Any
) -> None:
    answer = shared.http.post("/v1/chat/completions", json=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"], error["param"]) == (status, status, kind, param)
    assert message in error["message"]


def test_broken_and_undeclared_json_are_refused(shared: Any) -> None:
    def post(content: bytes, kind: str = "application/json") -> httpx.Response:
        headers = {"content-type": kind}
        answer: httpx.Response = shared.http.post("/v1/chat/completions", content=content, headers=headers)
        return answer

    broken = post(b'{"model": ').json()["error"]
    assert broken["param"] == "body.10"
    assert "'json_invalid'" in broken["message"]
    assert post(b"[" * 100_000).status_code == 400
    assert (
        "Unsupported Media Type"
        in post(json.dumps(_body()).encode(), "text/plain").json()["error"]["message"]
    )
    assert shared.health() == 200


def test_unknown_routes_and_methods(shared: Any) -> None:
    assert (answer := shared.http.get("/nope")).status_code == 404
    assert answer.json() == {"detail": "Not Found"}
    wrong = shared.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_invocations_serve_conversations_and_prompts(shared: Any) -> None:
    assert shared.http.post("/invocations", json=_body()).json()["object"] == "chat.completion"
    prompt = {"model": "sim", "prompt": "x", "max_tokens": 1}
    assert shared.http.post("/invocations", json=prompt).json()["object"] == "text_completion"


def test_responses_are_kept_by_id_unless_told_not_to(shared: Any) -> None:
    made = shared.http.post(
        "/v1/responses", json={"model": "sim", "input": "hi", "max_output_tokens": 4}
    ).json()
    assert made["status"] == "incomplete"
    assert made["usage"]["output_tokens"] == 4
    assert shared.http.get(f"/v1/responses/{made['id']}").json() == made
    other = shared.http.post("/v1/responses", json={"model": "sim", "input": "hi", "store": False}).json()
    missing = shared.http.get(f"/v1/responses/{other['id']}")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == f"Response with id '{other['id']}' not found."


def test_messages_api_whole_and_streamed(shared: Any) -> None:
    whole = shared.http.post("/v1/messages", json=_body(max_tokens=4)).json()
    assert (whole["type"], whole["stop_reason"], whole["usage"]["output_tokens"]) == (
        "message",
        "max_tokens",
        4,
    )
    with shared.http.stream("POST", "/v1/messages", json=_body(max_tokens=2, stream=True)) as answer:
        kinds = [line[7:] for line in answer.iter_lines() if line.startswith("event: ")]
    delta = "content_block_delta"
    assert kinds == ["message_start", "content_block_start", delta, delta, "content_block_stop", "message_delta", "message_stop"]  # fmt: skip
    wrong = shared.http.post("/v1/messages", json=_body(model="nope"))
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (404, "NotFoundError")


def test_embeddings_are_unit_vectors_that_follow_from_the_text(shared: Any) -> None:
    answer = shared.http.post("/v1/embeddings", json={"model": "sim", "input": ["a", "b", "a"]}).json()
    a, b, again = (item["embedding"] for item in answer["data"])
    assert a == again != b
    assert sum(value * value for value in a) == pytest.approx(1.0)


@pytest.mark.parametrize("path", ["/sleep?level=1", "/wake_up", "/pause", "/resume", "/reset_prefix_cache", "/collective_rpc", "/v1/load_lora_adapter"])  # fmt: skip
def test_development_routes_answer(shared: Any, path: Any) -> None:
    assert shared.http.post(path).status_code == 200


async def test_official_client_streams_lists_models_and_gets_typed_errors(start: Any, tools: Any) -> None:
    port = free_port()
    replica = start("--host", "127.0.0.1", "--port", str(port), ready=False)
    tools.wait_for("listening", lambda: "Application startup complete." in replica.text())
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
    ) as client:
        assert [model.id async for model in client.models.list()] == ["sim"]
        stream = await client.chat.completions.create(
            model="sim", messages=[{"role": "user", "content": "My order is late."}], max_tokens=200,
            temperature=0.7, stream=True,
        )  # fmt: skip
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert len("".join(words).split()) > 10
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
