"""What vLLM's log says: the phase a start is in, and why a replica ended.

The patterns are lines that vLLM 0.26 to 0.33 write (stdout and stderr in one stream). Only lines that vLLM itself
writes about the process are read: tracebacks of single requests, which a server survives, name no cause.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpuserved.core.cause import Cause, CauseKind, ExitInfo, from_exit

MESSAGE_MAX_CHARS = 300
"""A status line stays readable; the whole exception is in the log."""

_PREFIX = re.compile(
    r"^(?:\d+:)?\((?P<process>[\w.-]+) pid=\d+\) ?"
    r"(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
_EXCEPTION = re.compile(r"^(?P<name>[A-Za-z_][\w.]*(?:Error|Exception|Exit)): ?(?P<text>.*)")
_COUNTED = re.compile(r"\|\s*(\d+)/(\d+) \[")
_ALIVE = re.compile(r"Engine \d+: Avg prompt throughput")
_DEATH = re.compile(
    r"EngineCore (?:encountered a fatal error|failed to start|died)"
    r"|Worker proc \S+ died unexpectedly"
    r"|engine core exited unexpectedly"
    r"|EngineDeadError"
    r"|Engine core initialization failed"
)
_ECHO = re.compile(
    r"EngineDeadError|Engine core initialization failed|See (?:stack trace|root cause)|^(?:asyncio\.)?CancelledError"
    r"|^SystemExit|^KeyboardInterrupt|^RuntimeError: cancelled"
)
"""Exceptions that only repeat that something else failed before."""
_WORKER_DIED = re.compile(r"Worker proc (\S+) died unexpectedly \(exit code: ([^)]*)\)")
_CONFIG_ERROR = re.compile(r"ValidationError: \d+ validation errors? for (\w*(?:Config|Args))\b")

_SHARDS = re.compile(r"(?i)\b(?:loading\b.*(?:shards|loader|streamer)|fetching \d+ files)[^|]*:\s+\d+%")
_GRAPHS = re.compile(r"Capturing [\w -]*CUDA graphs?")
_PHASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"non-default args:|Resolved architecture:|Using max model len", "resolving model"),
        (r"Initializing a V\d+ LLM engine", "initialising engine"),
        (r"Starting to load model|Loading model from scratch|Loading drafter model", "loading weights"),
        (r"Time spent downloading weights", "loading weights"),
        (
            r"Warming up model for the compilation|Compile and warming up model|Starting torch\.compile",
            "compiling",
        ),
        (r"Dynamo bytecode transform|Compiling a graph|compiled graph|torch\.compile takes", "compiling"),
        (r"Initial profiling/warmup run|Profiling CUDA graph memory|Memory profiling takes", "profiling"),
        (
            r"KV cache size: [\d,]+ tokens|Available KV cache memory|for KV cache on node",
            "allocating KV cache",
        ),
        (r"init engine \(profile, create kv cache, warmup model\) took", "starting server"),
        (r"Starting vLLM (?:API )?server|Waiting for application startup", "starting server"),
    )
)

_RULES: tuple[tuple[re.Pattern[str], CauseKind], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"No available memory for the cache blocks", CauseKind.DOES_NOT_FIT),
        (r"larger than the available KV cache memory", CauseKind.DOES_NOT_FIT),
        (r"kv cache allocation is less than requested memory", CauseKind.DOES_NOT_FIT),
        (r"Failed to load model - not enough GPU memory", CauseKind.DOES_NOT_FIT),
        (r"World size \(\d+\) is larger than the number of available GPUs", CauseKind.DOES_NOT_FIT),
        (r"Free memory on device .* is less than desired", CauseKind.OUT_OF_MEMORY),
        (r"CUDA out of memory|OutOfMemoryError|HIP out of memory", CauseKind.OUT_OF_MEMORY),
        (r"^MemoryError|Cannot allocate memory|can't allocate memory|bad_alloc", CauseKind.OUT_OF_MEMORY),
        (r"No space left on device", CauseKind.OUT_OF_MEMORY),
        (r"Address already in use|EADDRINUSE", CauseKind.PORT_IN_USE),
        (r"RepositoryNotFoundError|GatedRepoError|RevisionNotFoundError", CauseKind.MODEL_MISSING),
        (r"HFValidationError: Repo id must", CauseKind.MODEL_MISSING),
        (r"is not a local folder and is not a valid model identifier", CauseKind.MODEL_MISSING),
        (r"does not appear to have a file named|Invalid repository ID or local directory", CauseKind.MODEL_MISSING),
        (r"Cannot find any model weights|Unrecognized model in|are not supported for now", CauseKind.MODEL_MISSING),
        (r"LocalEntryNotFoundError|OfflineModeIsEnabled|We couldn't connect to", CauseKind.HUB_UNREACHABLE),
        (r"HfHubHTTPError|(?:httpx|httpcore|requests|urllib3)\.\S*(?:Connect|Timeout|Proxy)", CauseKind.HUB_UNREACHABLE),
        (r"Max retries exceeded with url|Temporary failure in name resolution", CauseKind.HUB_UNREACHABLE),
    )
)  # fmt: skip
_ARGPARSE = re.compile(r"^(?:vllm|__main__\.py|main\.py|cli)\b[\w .]*: error: (?P<text>.*)")
_HF_PATH = re.compile(r"'namespace/repo_name': '([^']*)'")


@dataclass(frozen=True)
class _Line:
    process: str
    """Empty: written without vLLM's prefix (tracebacks, argparse, uvicorn)."""
    text: str
    logged: bool = False
    """Written by a logger: the process went on after it."""

    @property
    def of_engine(self) -> bool:
        return bool(self.process) and not self.process.startswith("APIServer")

    @property
    def error(self) -> str | None:
        """The exception or death this line names, if it is one that ends processes."""
        if found := _WORKER_DIED.search(self.text):
            return f"{found[1]} died unexpectedly (exit code {found[2]})"
        return self.text if _EXCEPTION.match(self.text) and not _ECHO.search(self.text) else None


def phase(line: str) -> str | None:
    """The loading phase a line announces, with `n/total` where a progress bar counts; None: no news."""
    if bar := _SHARDS.search(line):
        what = "downloading model" if "etching" in bar[0] else "loading weights"
        return what + _count(line)
    if _GRAPHS.search(line):
        return "capturing CUDA graphs" + _count(line)
    for pattern, name in _PHASES:
        if pattern.search(line):
            return name
    return None


def _count(line: str) -> str:
    # A progress bar rewrites its line with carriage returns: the last figure is the present one.
    found = _COUNTED.findall(line)
    return f" {found[-1][0]}/{found[-1][1]}" if found else ""


def cause(info: ExitInfo | None, tail: list[str]) -> Cause:
    """Why the process ended, from its exit status and the last lines of its log, first cause first.

    :param info: None where nobody knows how it ended.
    """
    lines = [_parse(line) for line in tail]
    death = next((at for at, line in enumerate(lines) if _DEATH.search(line.text)), None)
    ending = info.describe() if info else "exit status unknown"
    if death is None and info is not None and info.signal in {signal.SIGKILL, signal.SIGTERM}:
        return from_exit(info)  # somebody from outside: nothing it wrote before is the reason
    if found := _flag_error(lines):
        return Cause(CauseKind.BAD_FLAG, _short(found))
    if death is not None:
        return _engine_death(lines, death, ending)
    return _failed_start(lines, info, ending)


def _parse(line: str) -> _Line:
    found = _PREFIX.match(line)
    if found is None:
        return _Line("", line.rstrip())
    return _Line(found["process"], line[found.end() :].rstrip(), found["level"] is not None)


def _flag_error(lines: list[_Line]) -> str | None:
    """What vLLM refuses about its command line: argparse's word, or the config class's own check."""
    for at, line in enumerate(lines):
        if found := _ARGPARSE.match(line.text):
            return found["text"]
        if _CONFIG_ERROR.search(line.text):
            for later in lines[at + 1 : at + 8]:
                if later.text.startswith("  Value error, "):
                    text = later.text.removeprefix("  Value error, ").split(" [type=")[0]
                    return None if _kind(text) else text
            return line.text
    return None


def since_alive(lines: Sequence[str]) -> Sequence[str]:
    """What was written since the engine was last seen working; all, where it never was.

    It says so every ten seconds: an error before the last time was a request's, and survived.
    """
    last = next((at for at in range(len(lines) - 1, -1, -1) if _ALIVE.search(lines[at])), -1)
    return lines[last + 1 :]


def _kind(text: str) -> CauseKind | None:
    return next((kind for pattern, kind in _RULES if pattern.search(text)), None)


def _engine_death(lines: list[_Line], death: int, ending: str) -> Cause:
    """EngineCore or one of its workers is gone: the first error since the engine was last seen working."""
    start = next((at + 1 for at in range(death - 1, -1, -1) if _ALIVE.search(lines[at].text)), 0)
    first = next((line.error for line in lines[start:] if line.of_engine and line.error), None)
    if first is None:  # an older vLLM, or a start, may write the engine's traceback without its name
        first = next((line.error for line in lines[start:] if line.error), None)
    if first is None:
        gone = "it exited without a word, as after a SIGKILL (by hand, or by the kernel when host memory ran out)"
        return Cause(CauseKind.ENGINE_DIED, _short(f"EngineCore died: {gone}; API process {ending}"))
    kind = _kind(first) or CauseKind.ENGINE_DIED
    return Cause(kind, _short(f"EngineCore died: {first}", f"; API process {ending}"))


def _failed_start(lines: list[_Line], info: ExitInfo | None, ending: str) -> Cause:
    """The API process ended without an engine's death: its own exception says why."""
    for text in _refusals(lines):
        kind = _kind(text)
        if kind is CauseKind.MODEL_MISSING and (path := _HF_PATH.search(text)):
            return Cause(kind, _short(f"{path[1]}: no such model folder, and not a hub id"))
        if kind is not None:
            return Cause(kind, _short(text, f"; API process {ending}"))
    last = next((line.error for line in reversed(lines) if not line.logged and line.error), None)
    if last is not None and info is not None and info.signal is None and info.code:
        return Cause(CauseKind.EXITED, _short(f"API process {ending}: {last}"))
    return from_exit(info) if info else Cause(CauseKind.EXITED, "API process ended, and nobody saw how")


def _refusals(lines: list[_Line]) -> Iterator[str]:
    for line in lines:
        if line.logged and not line.of_engine:
            continue  # the server answered that request with an error and went on
        if line.error:
            yield line.error
        elif line.text.startswith("  Value error, "):
            yield line.text.removeprefix("  Value error, ").split(" [type=")[0]


def _short(text: str, ending: str = "") -> str:
    """One line of at most MESSAGE_MAX_CHARS; the ending survives the cut."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    room = MESSAGE_MAX_CHARS - len(ending)
    return (text if len(text) <= room else text[: room - 1].rstrip() + "…") + ending
