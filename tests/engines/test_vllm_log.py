from collections.abc import Callable

import pytest

from gpuserved.core.cause import CauseKind, ExitInfo, Healing
from gpuserved.engines.vllm.log import MESSAGE_MAX_CHARS, cause, phase

Log = Callable[[str], list[str]]
ENGINE = "(EngineCore pid=9) ERROR 11-24 02:13:24 [core.py:1510] "
BAR = "Loading safetensors checkpoint shards:  75% Completed | 3/4 [00:09<00:03, 3s/it]"
ECHO = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."


def ended(code: int | None, signal: int | None = None) -> ExitInfo:
    return ExitInfo(code, signal, 0.0)


def test_a_normal_start_goes_through_its_phases_in_order(vllm_log: Log) -> None:
    seen: list[str] = []
    for line in vllm_log("start"):
        found = phase(line)
        if found and (not seen or seen[-1] != found):
            seen.append(found)
    assert seen[:7] == [
        "resolving model",
        "initialising engine",
        "loading weights",
        "compiling",
        "profiling",
        "allocating KV cache",
        "starting server",
    ]
    assert "loading weights 1/1" in seen  # stderr follows stdout in the sample


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:09<00:08, 4.5s/it]",
            "loading weights 2/4",
        ),
        ("Loading pt checkpoint shards:   0% Completed | 0/3 [00:00<?, ?it/s]", "loading weights 0/3"),
        ("Multi-thread loading shards:  25% Completed | 1/4 [00:09<00:08]", "loading weights 1/4"),
        (
            "(Worker_TP0 pid=7) Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]\r"
            + BAR,
            "loading weights 3/4",
        ),
        ("Fetching 5 files:  40%|████      | 2/5 [00:03<00:05,  1.7s/it]", "downloading model 2/5"),
        (
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|█████     | 26/51 [00:01<00:01]",
            "capturing CUDA graphs 26/51",
        ),
        (
            "(APIServer pid=1) INFO 11-24 02:03:26 [entry.py:140] Starting vLLM server on unix:/x.sock",
            "starting server",
        ),
        ("(APIServer pid=1) INFO 11-24 02:03:26 [launcher.py:195] Route: /health, Methods: GET", None),
        ("", None),
    ],
)
def test_phases_of_single_lines(line: str, expected: str | None) -> None:
    assert phase(line) == expected


@pytest.mark.parametrize(
    ("section", "code", "kind", "words"),
    [
        ("fail badmodelpath", 1, CauseKind.MODEL_MISSING, "/nonexistent/model: no such model folder"),
        ("fail hubmodel_offline", 1, CauseKind.HUB_UNREACHABLE, "LocalEntryNotFoundError"),
        ("fail badflag", 2, CauseKind.BAD_FLAG, "unrecognized arguments: --no-such-flag 3"),
        ("fail badvalue", 2, CauseKind.BAD_FLAG, "argument --max-model-len: invalid"),
        ("fail portinuse", 1, CauseKind.PORT_IN_USE, "Address already in use"),
        ("fail toolong", 1, CauseKind.BAD_FLAG, "User-specified max_model_len (999999) is greater"),
        ("fail kvtoosmall", 1, CauseKind.DOES_NOT_FIT, "No available memory for the cache blocks"),
        ("fail kvtoobig", 1, CauseKind.DOES_NOT_FIT, "less than requested memory for kv (500.0 GiB)"),
        ("fail tp2", 1, CauseKind.BAD_FLAG, "heads (4) must be divisible by tensor parallel size (3)"),
        ("fail --enable-sleep-mode", 1, CauseKind.BAD_FLAG, "Sleep mode is not supported"),
    ],
)
def test_failed_starts_of_real_vllm(
    vllm_log: Log, section: str, code: int, kind: CauseKind, words: str
) -> None:
    found = cause(ended(code), vllm_log(section))
    assert found.kind is kind
    assert words in found.message
    assert "\n" not in found.message
    assert len(found.message) <= MESSAGE_MAX_CHARS


def test_a_killed_engine_core_is_named_although_the_exit_code_is_0(vllm_log: Log) -> None:
    found = cause(ended(0), vllm_log("EngineCore killed"))
    assert found.kind is CauseKind.ENGINE_DIED
    assert found.message.startswith("EngineCore died: ")
    assert found.message.endswith("API process exit code 0")
    assert "EngineDeadError" not in found.message  # that is the echo in the API server


def test_a_killed_worker_is_the_first_cause(vllm_log: Log) -> None:
    found = cause(ended(0), vllm_log("Worker killed"))
    assert found.kind is CauseKind.ENGINE_DIED
    assert "VllmWorker-0 died unexpectedly" in found.message


def test_the_first_exception_of_the_engine_wins_over_what_follows_from_it() -> None:
    tail = [
        "(Worker_TP1 pid=8) ERROR 11-24 02:13:24 [multiproc_executor.py:900] Traceback (most recent call last):",
        "(Worker_TP1 pid=8) ERROR 11-24 02:13:24 [multiproc_executor.py:900] torch.OutOfMemoryError: CUDA out of memory.",
        ENGINE + "EngineCore encountered a fatal error.",
        ENGINE + "RuntimeError: Worker failed with error 'CUDA out of memory.'",
        "(APIServer pid=1) ERROR 11-24 02:13:25 [async_llm.py:906] " + ECHO,
    ]
    found = cause(ended(0), tail)
    assert found.kind is CauseKind.OUT_OF_MEMORY
    assert (
        found.message
        == "EngineCore died: torch.OutOfMemoryError: CUDA out of memory.; API process exit code 0"
    )
    assert found.healing is Healing.BY_ITSELF


def test_an_error_the_engine_survived_is_not_the_cause_of_a_later_death() -> None:
    tail = [
        ENGINE + "ValueError: a request that could not be scheduled",
        "(APIServer pid=1) INFO 11-24 02:14:00 [loggers.py:335] Engine 000: Avg prompt throughput: 1.0 tokens/s",
        ENGINE + "EngineCore encountered a fatal error.",
        ENGINE + "RuntimeError: CUDA error: an illegal memory access was encountered",
    ]
    assert "illegal memory access" in cause(ended(0), tail).message


def test_errors_of_requests_are_no_cause() -> None:
    tail = [
        "(APIServer pid=1) ERROR 11-24 02:04:02 [validation.py:151] json.decoder.JSONDecodeError: Expecting value",
        "(APIServer pid=1) ERROR 11-24 02:04:02 [serving.py:1] OSError: [Errno 98] Address already in use",
    ]
    found = cause(ended(0), tail)
    assert found.kind is CauseKind.EXITED
    assert found.message == "API process ended by itself (exit code 0)"


def test_a_kill_from_outside_is_called_that_whatever_the_log_says() -> None:
    found = cause(ended(None, 9), ["ValueError: No available memory for the cache blocks."])
    assert found.kind is CauseKind.KILLED
    assert "SIGKILL" in found.message


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (
            "ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired",
            CauseKind.OUT_OF_MEMORY,
        ),
        (
            "ValueError: World size (4) is larger than the number of available GPUs (2)",
            CauseKind.DOES_NOT_FIT,
        ),
        ("MemoryError: std::bad_alloc", CauseKind.OUT_OF_MEMORY),
        (
            "OSError: nope/nope is not a local folder and is not a valid model identifier",
            CauseKind.MODEL_MISSING,
        ),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error", CauseKind.MODEL_MISSING),
        ("httpx.ConnectError: [Errno -3] Temporary failure in name resolution", CauseKind.HUB_UNREACHABLE),
        ("SomethingNewError: never seen before", CauseKind.EXITED),
    ],
)
def test_last_words_of_the_api_process(line: str, kind: CauseKind) -> None:
    found = cause(ended(1), ["Traceback (most recent call last):", '  File "x.py", line 1, in f', line])
    assert found.kind is kind
    assert line.split(":")[1].strip() in found.message


def test_control_bytes_and_length_never_reach_the_status_line() -> None:
    found = cause(ended(1), ["ValueError: \x1b[31m" + "x" * 5000])
    assert found.message.isprintable()
    assert len(found.message) <= MESSAGE_MAX_CHARS


def test_nothing_known() -> None:
    assert cause(None, []).kind is CauseKind.EXITED
    assert "exit code 7" in cause(ended(7), []).message
