"""The process tree, who dies with whom, and how the server ends: as measured on vLLM 0.32."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from tests.e2e.box import free_port

LONG = {"max_tokens": 8000, "ignore_eos": True}
"""Half a minute at 4 ms a step: no stream ends by itself in a test."""
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Client(threading.Thread):
    """One streaming client; keeps what it got and how it ended."""

    def __init__(self, replica: Any, tools: Any, **more: Any) -> None:
        super().__init__(daemon=True)
        self.replica, self.tools, self.more = replica, tools, more
        self.events: list[Any] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        transport = httpx.HTTPTransport(uds=self.replica.socket)
        try:
            with httpx.Client(transport=transport, base_url="http://replica", timeout=60) as http:
                content = self.tools.body("My order is late.", stream=True, **{**LONG, **self.more})
                with http.stream("POST", "/v1/chat/completions", json=content) as answer:
                    for line in answer.iter_lines():
                        self.events += self.tools.events(iter([line]))
        except httpx.HTTPError as error:
            self.error = error

    def under_way(self) -> Client:
        self.tools.wait_for("tokens", lambda: len(self.events) > 3)
        return self


def test_tree_is_server_tracker_engine_and_workers(start: Any) -> None:
    replica = start("--tensor-parallel-size", "2")
    tree = {process.pid: process for process in replica.tree()}
    api = tree[replica.process.pid]
    engine = replica.engine()
    assert "serve" in api.argv
    assert engine.argv == ["VLLM::EngineCore"]
    assert engine.ppid == api.pid
    assert {engine.session, api.session} == {os.getsid(api.pid)}
    workers = {
        process.title: process.ppid for process in tree.values() if process.title.startswith("VLLM::Worker")
    }
    assert workers == {"VLLM::Worker_TP0": engine.pid, "VLLM::Worker_TP1": engine.pid}
    (tracker,) = (
        process for process in tree.values() if any("resource_tracker" in part for part in process.argv)
    )
    assert tracker.ppid == api.pid
    assert len(tree) == 5


def test_one_gpu_has_no_worker_process(shared: Any) -> None:
    assert sorted(process.title.startswith("VLLM") for process in shared.tree()) == [False, False, True]


def test_kill_of_the_engine_ends_streams_with_an_error_event_and_the_server_with_code_0(
    start: Any, tools: Any
) -> None:
    replica = start("--tensor-parallel-size", "2", "--dead-engine-linger-s", "4")
    streams = [Client(replica, tools).under_way() for _ in range(2)]
    os.kill(replica.engine().pid, signal.SIGKILL)
    tools.wait_for("health 503", lambda: replica.health() == 503)
    late = replica.chat()
    assert (late.status_code, late.json()["error"]["message"]) == (500, DEAD)
    for stream in streams:
        stream.join(60)
        *_, error, done = stream.events
        assert stream.error is None
        assert error == {
            "error": {"message": DEAD, "type": "InternalServerError", "param": None, "code": 500}
        }
        assert done == "[DONE]"
    tools.wait_for("refused", lambda: replica.health() is None)
    assert replica.exit() == 0
    assert "engine core exited unexpectedly" in replica.text()
    tools.wait_for("workers gone", lambda: not replica.tree())


def test_kill_of_a_worker_takes_engine_and_server_with_it(start: Any, tools: Any) -> None:
    replica = start("--tensor-parallel-size", "2")
    (worker,) = replica.titled("VLLM::Worker_TP1")
    os.kill(worker.pid, signal.SIGKILL)
    assert replica.exit() == 0
    assert "Worker proc VllmWorker-1 died unexpectedly" in replica.text()
    tools.wait_for("nothing left", lambda: not replica.tree())


def test_kill_of_the_server_leaves_engine_and_workers_behind(start: Any, tools: Any) -> None:
    replica = start("--tensor-parallel-size", "2")
    client = Client(replica, tools).under_way()
    os.kill(replica.process.pid, signal.SIGKILL)
    assert replica.exit() == -signal.SIGKILL
    client.join(60)
    assert isinstance(client.error, httpx.RemoteProtocolError)
    left = {process.title: process.ppid for process in replica.tree() if process.title.startswith("VLLM::")}
    assert set(left) == {"VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"}
    os.kill(replica.engine().pid, signal.SIGTERM)
    tools.wait_for("gone after SIGTERM to the engine", lambda: not replica.tree())


def test_stopped_engine_keeps_health_200_with_running_above_0_and_a_flat_step_counter(
    start: Any, tools: Any
) -> None:
    replica = start()
    client = Client(replica, tools).under_way()
    engine = replica.engine().pid
    os.kill(engine, signal.SIGSTOP)
    tools.wait_for("stopped", lambda: replica.engine().state == "T")

    def so_far() -> tuple[float, int]:
        return replica.metric("vllm:iteration_tokens_total_count"), len(client.events)

    def flat() -> bool:
        before = so_far()
        time.sleep(0.3)  # many steps' time, in which nothing may move; but what was on its way may
        return so_far() == before

    tools.wait_for("flat", flat)
    said = len(client.events)
    assert replica.health() == 200
    assert replica.metric("vllm:num_requests_running") == 1
    os.kill(engine, signal.SIGCONT)
    tools.wait_for("moving again", lambda: len(client.events) > said + 5)


def test_stopped_worker_stops_the_steps(start: Any, tools: Any) -> None:
    replica = start("--tensor-parallel-size", "2")
    client = Client(replica, tools).under_way()
    (worker,) = replica.titled("VLLM::Worker_TP1")
    os.kill(worker.pid, signal.SIGSTOP)

    def flat() -> bool:
        before = replica.metric("vllm:iteration_tokens_total_count")
        time.sleep(0.2)
        return bool(before == replica.metric("vllm:iteration_tokens_total_count"))

    tools.wait_for("flat", flat)
    assert replica.health() == 200
    os.kill(worker.pid, signal.SIGCONT)
    said = len(client.events)
    tools.wait_for("moving again", lambda: len(client.events) > said)


def test_client_that_leaves_is_aborted(start: Any, tools: Any) -> None:
    replica = start()
    with replica.stream(**LONG) as answer:
        lines = answer.iter_lines()  # its end would close the response
        next(lines)
        assert replica.metric("vllm:num_requests_running") == 1
    tools.wait_for("idle", lambda: replica.metric("vllm:num_requests_running") == 0)
    assert 'finished_reason="abort",model_name="sim"} 1.0' in replica.http.get("/metrics").text


def test_sigterm_ends_an_idle_server_at_once_with_code_0(start: Any, tools: Any) -> None:
    replica = start("--tensor-parallel-size", "2")
    replica.process.terminate()
    assert replica.exit() == 0
    tools.wait_for("nothing left", lambda: not replica.tree())


def test_sigterm_with_an_open_stream_stops_the_engine_and_hangs_until_the_client_leaves(
    start: Any, tools: Any
) -> None:
    replica = start()
    with replica.stream(**LONG) as answer:
        lines = answer.iter_lines()  # its end would close the response
        next(lines)
        replica.process.terminate()
        tools.wait_for("engine gone", lambda: not replica.titled("VLLM::EngineCore"))
        tools.wait_for("refused", lambda: replica.health() is None)
        replica.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)  # it would be gone by now if anything but the client could end it
        assert replica.process.poll() is None
    assert replica.exit() == 0


def test_shutdown_timeout_lets_streams_finish_and_refuses_new_ones_with_500(start: Any, tools: Any) -> None:
    replica = start("--shutdown-timeout", "60", "--step-ms", "10")
    client = Client(replica, tools, max_tokens=450).under_way()
    replica.process.terminate()
    tools.wait_for("draining", lambda: "mode=drain timeout=60s" in replica.text())
    assert replica.health() == 200
    late = replica.chat()
    assert (late.status_code, late.json()["error"]["message"]) == (
        500,
        "cannot schedule new futures after shutdown",
    )
    client.join(60)
    assert client.events[-1] == "[DONE]"
    assert client.events[-2]["choices"][0]["finish_reason"] == "length"
    assert replica.exit() == 0


def test_socket_is_bound_before_the_load_and_refuses_until_after_it(start: Any, tools: Any) -> None:
    replica = start("--load-s", "4", ready=False)
    tools.wait_for("bound", lambda: os.path.exists(replica.socket))
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(replica.socket)
    replica.ready()
    for line in ("Starting to load model sim/m", "100% Completed | 4/4", "GPU KV cache size: 65,536 tokens", "init engine", "Starting vLLM server on unix:", "Application startup complete."):  # fmt: skip
        assert line in replica.text()


def test_sigterm_while_loading_leaves_nothing(start: Any, tools: Any) -> None:
    replica = start("--load-s", "60", ready=False)
    tools.wait_for("loading", lambda: "Initializing a V1 LLM engine" in replica.text())
    replica.process.terminate()
    assert replica.exit() != 0
    tools.wait_for("nothing left", lambda: not replica.tree())


def test_tcp_port(start: Any, tools: Any) -> None:
    port = free_port()
    replica = start("--host", "127.0.0.1", "--port", str(port), ready=False)
    tools.wait_for("listening", lambda: "Application startup complete." in replica.text())
    assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=60).status_code == 200


def test_an_idle_replica_costs_next_to_nothing(start: Any, tools: Any) -> None:
    replica = start()
    tree = replica.tree()

    def cpu_ticks() -> int:
        total = 0
        for process in tree:
            with open(f"/proc/{process.pid}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total

    def idle() -> bool:
        before = cpu_ticks()
        time.sleep(1.5)  # what is measured is idleness
        return cpu_ticks() - before <= 3  # 2 % of a core

    # The last work of the start may outlast the first answer of /health; one that polls is never idle.
    tools.wait_for("idle", idle)
