"""Starts that fail and processes that crash on request, with vLLM's exit status and last words."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from gpuserved.core.cause import CauseKind, ExitInfo
from gpuserved.engines.vllm import log as vllm_log

LOAD_FAILURES = [
    ("oom", 1, "torch.OutOfMemoryError: CUDA out of memory", CauseKind.OUT_OF_MEMORY),
    ("killed", -9, "Starting to load model", CauseKind.KILLED),
    ("bad-flag", 2, "vllm: error: unrecognized arguments", CauseKind.BAD_FLAG),
    ("missing-model", 1, "HFValidationError", CauseKind.MODEL_MISSING),
    ("hub", 1, "LocalEntryNotFoundError", CauseKind.HUB_UNREACHABLE),
    ("kv-too-small", 1, "No available memory for the cache blocks", CauseKind.DOES_NOT_FIT),
    ("port-in-use", 1, "[Errno 98] Address already in use", CauseKind.PORT_IN_USE),
    ("engine", 1, "illegal memory access", CauseKind.ENGINE_DIED),
]


@pytest.mark.parametrize(("kind", "status", "line", "cause"), LOAD_FAILURES)
def test_failed_loads_end_as_vllm_with_a_log_that_names_the_cause(
    start: Any, kind: Any, status: Any, line: Any, cause: Any
) -> None:
    replica = start("--fail-load", kind, ready=False)
    assert replica.exit() == status
    assert line in replica.text()
    code, number = (status, None) if status >= 0 else (None, -status)
    assert vllm_log.cause(ExitInfo(code, number, 0.0), replica.text().splitlines()).kind is cause


def test_real_reasons_fail_a_start_the_same_way(start: Any) -> None:
    missing = start(ready=False, model="/nonexistent/model")
    assert missing.exit() == 1
    assert "'/nonexistent/model'" in missing.text()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        blocked = start("--host", "127.0.0.1", "--port", port, ready=False)
        assert blocked.exit() == 1
    assert "Address already in use" in blocked.text()
    unknown = start("--no-such-flag", "3", ready=False)
    assert unknown.exit() == 2
    assert "vllm: error: unrecognized arguments: --no-such-flag 3" in unknown.text()


CRASHES = [
    (("--crash-after-load",), 1),
    (("--crash-after-load", "--crash-exit-code", "3"), 3),
    (("--crash-after-s", "0.1", "--crash-exit-code=-9"), -9),
    (("--crash-after-s", "0.1", "--crash-process", "engine"), 0),
]


@pytest.mark.parametrize(("flags", "status"), CRASHES)
def test_crashes_by_themselves(start: Any, flags: Any, status: Any) -> None:
    assert start(*flags, ready=False).exit() == status


def test_crash_after_requests_lets_the_earlier_ones_through(start: Any) -> None:
    replica = start("--crash-after-requests", "2", "--crash-exit-code", "7")
    assert replica.chat().status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        replica.chat()
    assert replica.exit() == 7


def test_poison_kills_the_engine_and_nothing_else_does(start: Any) -> None:
    replica = start("--crash-on-prompt", "poison pill")
    assert replica.chat("a pill").status_code == 200
    answer = replica.chat("take the poison pill now")
    assert answer.status_code == 500
    assert replica.exit() == 0
    cause = vllm_log.cause(ExitInfo(0, None, 0.0), replica.text().splitlines())
    assert "illegal memory access" in cause.message
    at_once = start("--crash-on-prompt", "poison", "--crash-process", "api")
    with pytest.raises(httpx.RemoteProtocolError):
        at_once.chat("poison")
    assert at_once.exit() == 1


def test_death_in_mid_stream(start: Any, tools: Any) -> None:
    replica = start("--die-mid-stream-after-tokens", "5", "--crash-exit-code=-9")
    assert replica.chat().status_code == 200
    lines: list[str] = []
    with replica.stream(max_tokens=50) as answer, pytest.raises(httpx.RemoteProtocolError):
        lines.extend(answer.iter_lines())
    assert replica.exit() == -9
    assert len(tools.events(iter(lines))) == 6


def test_faults_file_strikes_one_generation_of_one_replica(start: Any, tmp_path: Any) -> None:
    path = tmp_path / "faults.json"
    path.write_text(
        json.dumps(
            {"sim-1@1": {"crash_after_load": True, "crash-exit-code": 5}, "sim-1": {"max-num-seqs": 4}}
        )
    )
    flags = ("--faults-file", str(path))
    first = start(*flags, ready=False, env={"GPUSERVE_REPLICA": "sim-1", "GPUSERVE_GENERATION": "1"})
    assert first.exit() == 5
    start(*flags, env={"GPUSERVE_REPLICA": "sim-1", "GPUSERVE_GENERATION": "2"})
    start(*flags, env={"GPUSERVE_REPLICA": "sim-0", "GPUSERVE_GENERATION": "1"})


@pytest.mark.parametrize("content", ["{", "[1]", '{"sim-0": 3}', None])
def test_unusable_faults_file_is_a_usage_error(start: Any, tmp_path: Any, content: Any) -> None:
    path = tmp_path / "faults.json"
    if content is not None:
        path.write_text(content)
    replica = start("--faults-file", str(path), ready=False)
    assert replica.exit() == 2
    assert "vllm serve: error: argument --faults-file: " in replica.text()
