"""The figures: vLLM's names, types and labels, and what moves them."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

NAMES = Path(__file__).with_name("vllm_metric_names.txt")


def test_families_are_vllms_in_order_with_type_and_help(shared: Any) -> None:
    shared.chat()
    answer = shared.http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    found = re.findall(r"^# TYPE (\S+ \S+)$", answer.text, re.MULTILINE)
    assert found == NAMES.read_text().splitlines()
    assert [name.split()[0] for name in found] == re.findall(r"^# HELP (\S+) ", answer.text, re.MULTILINE)


def test_every_sample_parses_and_belongs_to_a_family(shared: Any) -> None:
    shared.chat()
    families = {line.split()[0] for line in NAMES.read_text().splitlines()}
    for line in shared.http.get("/metrics").text.splitlines():
        if line.startswith("#"):
            continue
        name = re.fullmatch(r'([a-z_0-9:]+)(\{(?:[a-z_]+="[^"]*",?)+\})? (\S+)', line)
        assert name, line
        float(name[3])
        assert name[1] in families or re.sub(r"_(bucket|count|sum)$", "", name[1]) in families


def test_steps_and_tokens_count_exactly(start: Any) -> None:
    replica = start()
    before = replica.metric("vllm:iteration_tokens_total_count")
    used = replica.chat(max_tokens=10, ignore_eos=True).json()["usage"]
    assert replica.metric("vllm:iteration_tokens_total_count") - before == 10
    assert replica.metric("vllm:generation_tokens_total") == 10
    assert replica.metric("vllm:prompt_tokens_total") == used["prompt_tokens"]
    assert replica.metric("vllm:time_to_first_token_seconds_count") == 1
    assert replica.metric("vllm:inter_token_latency_seconds_count") == 9
    text = replica.http.get("/metrics").text
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="sim"} 1.0' in text
    assert 'http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 1.0' in text


def test_a_repeated_prefix_hits_the_cache_and_a_reset_forgets_it(start: Any) -> None:
    replica = start("--prefill-tok-s", "2000")
    text = "Please check the status of the order today. " * 100
    first = replica.chat(text, max_tokens=1)
    assert replica.metric("vllm:prefix_cache_hits_total") == 0
    tokens = first.json()["usage"]["prompt_tokens"]
    replica.chat(text, max_tokens=1)
    hits = replica.metric("vllm:prefix_cache_hits_total")
    assert tokens - 17 <= hits < tokens
    assert hits % 16 == 0
    assert replica.metric("vllm:prefix_cache_queries_total") == 2 * tokens
    replica.chat(text, max_tokens=1, cache_salt="another tenant")
    replica.http.post("/reset_prefix_cache")
    replica.chat(text, max_tokens=1)
    assert replica.metric("vllm:prefix_cache_hits_total") == hits
    again = min(replica.chat(text, max_tokens=1).elapsed for _ in range(4))
    assert again < first.elapsed / 2


def test_requests_beyond_max_num_seqs_wait(start: Any, tools: Any) -> None:
    replica = start("--max-num-seqs", "2")
    long = {"max_tokens": 8000, "ignore_eos": True}
    with replica.stream(**long) as one, replica.stream(**long) as two, socket.socket(socket.AF_UNIX) as third:
        assert (one.status_code, two.status_code) == (200, 200)
        third.connect(replica.socket)  # its answer does not begin while it waits, so no client could go on
        third.sendall(tools.raw_post("/v1/chat/completions", tools.body("x", stream=True)))
        tools.wait_for("one waits", lambda: replica.metric("vllm:num_requests_waiting") == 1)
        assert replica.metric("vllm:num_requests_running") == 2
        assert replica.metric("vllm:kv_cache_usage_perc") > 0
