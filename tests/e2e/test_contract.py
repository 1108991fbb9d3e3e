"""What a client may rely on behind one URL, whichever engine answers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import requests
from tests.e2e.clients import QUESTION, PlainLoad, open_streams
from tests.e2e.texts import SERVED, Fleet

NUMBER = (int, float)
STATUS: dict[str, Any] = {
    "generation": int,
    "version": str,
    "endpoint": str,
    "supervisor": {"pid": int, "version": str, "uptime_s": NUMBER},
    "router": {"pids": [int], "in_flight": int, "queued": int, "requests_total": int},
}
REPLICA: dict[str, Any] = {
    "id": str, "profile": str, "model": str, "engine": str, "state": str, "rotation": str, "pid": int, "shim_pid": int,
    "generation": int, "gpus": [int], "in_flight": int, "restarts": int, "started_at": NUMBER,
}  # fmt: skip
REPLICA_NULLABLE = {"reason": str, "running": int, "waiting": int, "kv_cache_pct": NUMBER}


def conforms(value: Any, shape: Any) -> bool:
    """True where `value` has at least the fields of `shape`, with their types. A boolean is no number."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(k in value and conforms(value[k], s) for k, s in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(conforms(one, shape[0]) for one in value)
    return isinstance(value, shape) and not isinstance(value, bool)


def post(fleet: Fleet, route: str, **body: Any) -> requests.Response:
    return requests.post(f"{fleet.endpoint}{route}", json={"model": SERVED, **body}, timeout=60)


def test_the_missions_request_plain(fleet: Fleet) -> None:
    response = requests.post(
        f"{fleet.endpoint}/v1/chat/completions",
        json={
            "model": SERVED,
            "messages": [{"role": "user", "content": "My order is late."}],
            "max_tokens": 200,
            "temperature": 0.7,
        },
        timeout=60,
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == SERVED
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in {"stop", "length"}
    assert 0 < answer["usage"]["completion_tokens"] <= 200


def test_the_missions_request_streamed(fleet: Fleet) -> None:
    with requests.post(
        f"{fleet.endpoint}/v1/chat/completions",
        json={
            "model": SERVED,
            "messages": [{"role": "user", "content": "My order is late."}],
            "max_tokens": 200,
            "temperature": 0.7,
            "stream": True,
        },
        stream=True,
        timeout=60,
    ) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_completions_plain_and_streamed(fleet: Fleet) -> None:
    plain = post(fleet, "/v1/completions", prompt="My order", max_tokens=8)
    assert plain.status_code == 200, plain.text
    assert plain.json()["object"] == "text_completion"
    assert plain.json()["choices"][0]["text"]
    with requests.post(
        f"{fleet.endpoint}/v1/completions",
        json={"model": SERVED, "prompt": "My order", "max_tokens": 8, "stream": True},
        stream=True,
        timeout=60,
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == b"data: [DONE]"
    assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])


def test_models_are_merged_under_the_served_name(fleet: Fleet) -> None:
    answer = requests.get(f"{fleet.endpoint}/v1/models", timeout=30).json()
    assert answer["object"] == "list"
    assert [row["id"] for row in answer["data"]] == [SERVED]


def test_tokenize_counts_what_the_prompt_costs(fleet: Fleet) -> None:
    short = post(fleet, "/tokenize", prompt="My order is late.")
    longer = post(fleet, "/tokenize", prompt="My order is late. " * 20)
    assert short.status_code == 200, short.text
    assert 0 < short.json()["count"] < longer.json()["count"]
    assert len(short.json()["tokens"]) == short.json()["count"]


def test_health_and_metrics_of_the_router_answer(fleet: Fleet) -> None:
    assert requests.get(f"{fleet.endpoint}/health", timeout=30).status_code == 200
    metrics = requests.get(f"{fleet.endpoint}/metrics", timeout=30)
    assert metrics.status_code == 200
    assert "# TYPE" in metrics.text


def test_the_official_client_works(fleet: Fleet) -> None:
    with openai.OpenAI(base_url=f"{fleet.endpoint}/v1", api_key="unused", timeout=60) as client:
        messages: Any = QUESTION
        plain = client.chat.completions.create(model=SERVED, messages=messages, max_tokens=12)
        assert plain.choices[0].message.content
        pieces = [
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(
                model=SERVED, messages=messages, max_tokens=12, stream=True
            )
            if chunk.choices
        ]
        assert "".join(pieces)
        assert [model.id for model in client.models.list()] == [SERVED]


def test_both_replicas_get_traffic(fleet: Fleet) -> None:
    streams = open_streams(fleet.endpoint, SERVED, count=8, tokens=100).join()
    assert [stream.failure for stream in streams if not stream.whole] == []
    assert {stream.replica for stream in streams} == {"tiny-0", "tiny-1"}


def test_requests_one_after_the_other_all_succeed(fleet: Fleet) -> None:
    before = fleet.look()["router"]["requests_total"]
    with PlainLoad(fleet.endpoint, SERVED, clients=4) as load:
        load.reach(60)
    # What `chat` was just answered must be in the `status` that follows it.
    assert fleet.look()["router"]["requests_total"] >= before + load.answered


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"model": "tiny", "messages": [', 400, "JSON"),
        (b"[]", 400, "object"),
        (b'{"messages": []}', 400, "model"),
        (b'{"model": 7, "messages": []}', 400, "model"),
        (b'{"model": "no-such-model", "messages": []}', 404, "no-such-model"),
    ],
)
def test_bad_requests_get_openai_error_objects(fleet: Fleet, body: bytes, status: int, says: str) -> None:
    response = requests.post(
        f"{fleet.endpoint}/v1/chat/completions",
        data=body,
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"]
    assert {"message", "type", "param", "code"} <= error.keys()


def test_an_unknown_model_is_told_which_exist(fleet: Fleet) -> None:
    with (
        openai.OpenAI(base_url=f"{fleet.endpoint}/v1", api_key="unused", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match=SERVED),
    ):
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "route",
    ["/v1/load_lora_adapter", "/invocations", "/sleep", "/reset_prefix_cache", "/collective_rpc", "/server_info", "/docs"],
)  # fmt: skip
def test_administration_of_the_engine_is_out_of_reach(fleet: Fleet, route: str) -> None:
    assert post(fleet, route).status_code == 404


def test_status_has_the_fields_of_the_contract(fleet: Fleet) -> None:
    status = fleet.status()
    assert conforms(status, STATUS), status
    assert status["endpoint"] == fleet.endpoint
    assert status["gpus"] == [] or conforms(status["gpus"], [{"index": int, "uuid": str, "owners": []}])
    rows = status["replicas"]
    assert [row["id"] for row in rows] == ["tiny-0", "tiny-1"]
    for row in rows:
        assert conforms(row, REPLICA), row
        assert REPLICA_NULLABLE.keys() <= row.keys()
        assert all(row[k] is None or conforms(row[k], shape) for k, shape in REPLICA_NULLABLE.items()), row
        assert (row["profile"], row["model"], row["engine"]) == ("tiny", SERVED, fleet.flavour.engine)
        assert (row["state"], row["rotation"]) == ("READY", "in")


def test_status_for_people_names_every_replica(fleet: Fleet) -> None:
    shown = fleet.ok("status")
    assert fleet.endpoint in shown
    assert all(word in shown for word in ("tiny-0", "tiny-1", "READY"))


def test_chat_on_the_command_line(fleet: Fleet) -> None:
    assert fleet.ok("chat", "My order is late.").strip()
    assert fleet.ok("chat", "--model", SERVED, "My order is late.").strip()
