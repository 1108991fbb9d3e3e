"""First tracebacks and levers, on the logs that vLLM really wrote."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpuserved.core.cause import Cause, CauseKind, ExitInfo
from gpuserved.engines.levers import ANY_ENGINE
from gpuserved.engines.tracebacks import LINES_MAX, first_tracebacks
from gpuserved.engines.vllm.levers import VLLM
from gpuserved.engines.vllm.log import cause, since_alive

Log = Callable[[str], list[str]]
ENGINE = "(EngineCore pid=9) ERROR 11-24 02:13:24 [core.py:1510] "
SERVER = "(APIServer pid=7) "


def test_lines_of_two_processes_that_alternate_are_told_apart() -> None:
    found = first_tracebacks([
        ENGINE + "Traceback (most recent call last):",
        SERVER + "Traceback (most recent call last):",
        ENGINE + '  File "core.py", line 1, in run',
        SERVER + '  File "api.py", line 2, in serve',
        ENGINE + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        SERVER + "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        ENGINE + "Traceback (most recent call last):",
        ENGINE + "ValueError: an echo",
    ])  # fmt: skip
    assert list(found) == ["EngineCore", "APIServer"]
    assert found["EngineCore"] == [
        "Traceback (most recent call last):",
        '  File "core.py", line 1, in run',
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
    ]
    assert found["APIServer"][-1].startswith("vllm.v1.engine.exceptions.EngineDeadError")


def test_a_long_one_keeps_its_head_and_its_exception() -> None:
    frames = [f'  File "f.py", line {n}' for n in range(200)]
    found = first_tracebacks(["Traceback (most recent call last):", *frames, "ValueError: no"])[""]
    assert len(found) == LINES_MAX
    assert found[0] == "Traceback (most recent call last):"
    assert found[-1] == "ValueError: no"
    assert "  ... 163 lines left out ..." in found


def test_a_log_without_one_has_none(vllm_log: Log) -> None:
    assert first_tracebacks(vllm_log("start")) == {}


def test_a_real_death_of_the_engine_shows_who_noticed(vllm_log: Log) -> None:
    """EngineCore was killed with SIGKILL: it wrote nothing, and the API server's first traceback says what it saw."""
    found = first_tracebacks(vllm_log("EngineCore killed"))
    assert list(found) == ["APIServer"]
    assert found["APIServer"][0] == "Traceback (most recent call last):"
    assert "EngineDeadError" in found["APIServer"][-1]


def test_errors_that_a_server_survived_are_not_why_it_ended() -> None:
    alive = (
        "(APIServer pid=7) INFO 11-24 02:13:24 [loggers.py:1] Engine 000: Avg prompt throughput: 1.0 tokens/s"
    )
    request = [SERVER + "Traceback (most recent call last):", SERVER + "ValueError: a request's"]
    death = [ENGINE + "Traceback (most recent call last):", ENGINE + "RuntimeError: CUDA error"]
    assert first_tracebacks(since_alive([*request, alive, *death])).keys() == {"EngineCore"}
    assert first_tracebacks(since_alive([*request, *death])).keys() == {"APIServer", "EngineCore"}


@pytest.mark.parametrize(
    ("sample", "helps"),
    [
        ("fail kvtoosmall", "max_model_len"),
        ("fail kvtoobig", "kv_cache_memory_bytes"),
        ("fail portinuse", "takes another port"),
        ("fail badflag", "correct the flag"),
        ("fail toolong", "not made for this length"),
        ("fail badmodelpath", "correct model"),
        ("fail hubmodel_offline", "not in the cache"),
        ("EngineCore killed", "killed from outside"),
        ("Worker killed", "killed from outside"),
    ],
)
def test_real_failures_have_a_lever(vllm_log: Log, sample: str, helps: str) -> None:
    log = vllm_log(sample)
    why = cause(ExitInfo(1, None, 0.0), log)
    exceptions = [lines[-1] for lines in first_tracebacks(log).values()]
    found = VLLM.of(why, exceptions)
    assert found is not None
    assert helps in found, (why, found)


def test_what_was_killed_from_outside_has_no_lever_of_an_old_exception() -> None:
    why = Cause(CauseKind.KILLED, "API process killed by SIGKILL")
    assert VLLM.of(why, ["ValueError: heads must be divisible by 3"]) is None
    assert VLLM.of(Cause(CauseKind.ENGINE_DIED, "EngineCore died"), ["RuntimeError: NCCL error"]) is not None


def test_an_unknown_failure_has_no_lever() -> None:
    assert VLLM.of(Cause(CauseKind.EXITED, "API process ended by itself (exit code 3)"), []) is None


def test_levers_are_single_lines_that_can_be_shown() -> None:
    for advice in (
        *(each.advice for each in VLLM.known),
        *VLLM.by_kind.values(),
        *ANY_ENGINE.by_kind.values(),
    ):
        assert advice.isprintable()
        assert len(advice) < 200
