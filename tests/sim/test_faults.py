"""Every fault switch does what it says, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest


def test_stall_after_tokens_leaves_the_stream_open_and_the_engine_stepping(start: Any, tools: Any) -> None:
    replica = start("--stall-after-tokens", "3")
    with replica.stream(max_tokens=400, ignore_eos=True) as answer:
        lines = answer.iter_lines()
        seen = tools.events(line for _, line in zip(range(8), lines, strict=False))
        assert len(seen) == 4
        before = replica.metric("vllm:iteration_tokens_total_count")
        tools.wait_for("steps", lambda: replica.metric("vllm:iteration_tokens_total_count") > before + 10)
        assert _silent(
            replica.socket, tools.raw_post("/v1/chat/completions", tools.body("x", stream=True)), 4
        )


def _silent(path: str, request: bytes, events: int) -> bool:
    """Whether an answer stops after so many events and stays open."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.settimeout(60)
        client.sendall(request)
        got = b""
        while got.count(b"data: ") < events:
            got += client.recv(65536)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(65536)
        return got.count(b"data: ") == events


def test_stall_after_bytes(start: Any, tools: Any) -> None:
    replica = start("--stall-after-bytes", "100")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(replica.socket)
        client.sendall(tools.raw_post("/v1/chat/completions", tools.body("x")))
        client.settimeout(60)
        got = b""
        while len(got.partition(b"\r\n\r\n")[2]) < 100:
            got += client.recv(65536)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(65536)
    assert len(got.partition(b"\r\n\r\n")[2]) == 100
    assert replica.metric("vllm:num_requests_running") == 0


@pytest.mark.parametrize("flags", [("--engine-hang-after-s", "0"), ("--engine-hang-on-prompt", "hang")])
def test_hung_engine_is_busy_without_steps_and_dies_of_sigkill_alone(
    start: Any, tools: Any, flags: Any
) -> None:
    replica = start(*flags)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(replica.socket)
        client.sendall(tools.raw_post("/v1/chat/completions", tools.body("please hang", max_tokens=50)))
        tools.wait_for("running", lambda: replica.metric("vllm:num_requests_running") == 1)
        assert replica.metric("vllm:iteration_tokens_total_count") == 1
        assert replica.health() == 200
        engine = replica.engine().pid
        os.kill(engine, signal.SIGTERM)
        time.sleep(0.2)  # a healthy engine would be gone
        assert replica.titled("VLLM::EngineCore")
        os.kill(engine, signal.SIGKILL)
        assert replica.exit() == 0


def test_health_flaps(start: Any, tools: Any) -> None:
    replica = start("--health-flap", "0.2", ready=False)
    for status in (200, 503, 200):
        tools.wait_for(f"{status}", lambda status=status: replica.health() == status)


def test_health_hangs_while_requests_are_served(start: Any) -> None:
    replica = start("--health-hang-after-s", "0", ready=False)
    while "Application startup complete." not in replica.text():
        time.sleep(0.02)
    with pytest.raises(httpx.ReadTimeout):
        replica.http.get("/health", timeout=0.3)
    assert replica.chat().status_code == 200


def test_accepts_and_never_answers_but_stays_healthy(start: Any) -> None:
    replica = start("--accept-never-answer")
    with pytest.raises(httpx.ReadTimeout):
        replica.http.post("/v1/chat/completions", json={}, timeout=0.3)
    assert replica.health() == 200


GARBAGE = ["bad-chunk", "short-body", "long-body", "huge-header", "not-http", "truncated-chunked"]


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_responses(start: Any, tools: Any, kind: Any) -> None:
    replica = start("--garbage-response", kind)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(replica.socket)
        client.sendall(tools.raw_post("/v1/chat/completions", tools.body("x")))
        client.settimeout(60)
        got = b""
        while data := client.recv(1 << 20):
            got += data
    head, _, rest = got.partition(b"\r\n\r\n")
    wrong = {
        "bad-chunk": b"+zz" in rest, "short-body": len(rest) < 1000 and b"content-length: 1000" in head,
        "long-body": len(rest) > 2 and b"content-length: 2" in head, "huge-header": len(head) > 1 << 20,
        "not-http": not got.startswith(b"HTTP/"), "truncated-chunked": b"chunked" in head and not rest.endswith(b"0\r\n\r\n"),
    }  # fmt: skip
    assert wrong[kind]
    assert replica.health() == 200


@pytest.mark.parametrize("kind", ["malformed", "huge", "nan", "duplicate", "endless"])
def test_bad_metrics(start: Any, kind: Any) -> None:
    replica = start("--bad-metrics", kind)
    got = bytearray()
    with replica.http.stream("GET", "/metrics") as answer:
        for data in answer.iter_bytes():
            got += data
            if len(got) > 10 << 20:
                break
    text = got.decode()
    first = "vllm:num_requests_running{"
    proof = {
        "malformed": "{{{ not prometheus" in text, "huge": 8 << 20 < len(got) < 10 << 20, "endless": len(got) > 10 << 20,
        "nan": text.count(" NaN\n") > 100, "duplicate": text.count(first) == 2,
    }  # fmt: skip
    assert proof[kind]
    assert replica.health() == 200


def test_log_flood_is_written_at_its_rate(start: Any, tools: Any) -> None:
    replica = start("--log-flood", "2000")
    tools.wait_for("2,000 lines", lambda: "line 1999 " in replica.text())
    assert replica.chat().status_code == 200


def test_sigterm_ignored(start: Any) -> None:
    replica = start("--ignore-sigterm")
    replica.process.terminate()
    os.kill(replica.engine().pid, signal.SIGTERM)
    time.sleep(0.5)  # an idle one is gone by then
    assert replica.health() == 200
    assert replica.titled("VLLM::EngineCore")


def test_escaped_child_outlives_its_group_and_session(start: Any, tools: Any) -> None:
    replica = start("--escape-child")
    (child,) = tools.wait_for("its start", lambda: replica.titled("sim-escaped-child"))
    assert child.session not in {os.getsid(replica.process.pid), replica.engine().session}
    assert child.ppid not in {replica.process.pid, replica.engine().pid}
    replica.process.terminate()
    assert replica.exit() == 0
    tools.wait_for("alone", lambda: [process.title for process in replica.tree()] == ["sim-escaped-child"])


def test_shared_memory_stays_behind(start: Any, tools: Any) -> None:
    replica = start("--shm-leak")
    maps = Path(f"/proc/{replica.engine().pid}/maps").read_text()
    left = {line.split()[-1] for line in maps.splitlines() if "/dev/shm/" in line}
    kinds = {name.removeprefix("/dev/shm/").partition("_" if "psm" in name else "-")[0] for name in left}
    try:
        assert kinds == {"psm", "sem.mp"}
        replica.process.terminate()
        assert replica.exit() == 0
        tools.wait_for("nothing left", lambda: not replica.tree())
        assert all(os.path.exists(name) for name in left)
    finally:
        for name in left:
            os.unlink(name)


def test_slow_start_stalls_without_a_word(start: Any, tools: Any) -> None:
    replica = start("--slow-start-stall-s", "4", ready=False)
    tools.wait_for("stall", lambda: "Loading weights took" in replica.text())
    before = replica.text()
    time.sleep(0.5)  # a part of the stall
    assert replica.text() == before
    assert replica.health() is None
    replica.ready()


def test_step_time_and_jitter(start: Any) -> None:
    replica = start("--step-ms", "20", "--step-jitter", "0.5")
    took = replica.chat(max_tokens=20, ignore_eos=True).elapsed.total_seconds()
    assert took > 20 * 0.010
