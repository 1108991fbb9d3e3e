"""The embedded engine, for real: xllamacpp with the packaged model."""

import fcntl
import hashlib
import importlib.util
import json
import multiprocessing
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.core.cause import CauseKind, ExitInfo
from gpuserved.core.profile import EngineName
from gpuserved.engines import installed
from gpuserved.engines.llamacpp.adapter import LlamacppEngine
from gpuserved.engines.llamacpp.model import PACKAGED, ModelError, PackagedModel, ensure

Make = Callable[..., Any]
MISSION = {
    "messages": [{"role": "user", "content": "My order is late."}],
    "max_tokens": 200,
    "temperature": 0.7,
}


@pytest.fixture
def gemma(profile: Make) -> Callable[..., Any]:
    def make(**fields: Any) -> Any:
        plain = {
            "engine": EngineName.LLAMACPP,
            "model": "gemma3-270m",
            "served_name": "gemma-3-270m",
            "max_model_len": 1024,
            "flags": {"parallel": 2, "threads": 1},
        }
        return profile(**{**plain, **fields})

    return make


def deltas(body: str) -> list[dict[str, Any]]:
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_model_answers_on_a_unix_socket(gemma: Make, context: Make, run: Make, folder: Path) -> None:
    engine = LlamacppEngine(folder / "cache")
    wanted = gemma()
    assert engine.check(wanted) == []
    server = run(engine.launch(context(wanted)))
    server.wait_ready()
    status, body = server.call("POST", "/v1/chat/completions", {"model": "gemma-3-270m", **MISSION})
    assert status == 200
    answer = json.loads(body)
    text = answer["choices"][0]["message"]["content"]
    assert answer["model"] == "gemma-3-270m"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert re.search(r"[A-Za-z]{2}", text)
    assert not re.search(r"<\w+>|<\||User:", text)
    assert text == text.strip()

    status, body = server.call(
        "POST", "/v1/chat/completions", {"model": "gemma-3-270m", "stream": True, **MISSION}
    )
    chunks = deltas(body)
    streamed = "".join(
        chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]
    )
    assert status == 200
    assert len(chunks) > 3
    assert re.search(r"[A-Za-z]{2}", streamed)
    assert "User:" not in streamed

    capital = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    assert (
        "Paris"
        in json.loads(server.call("POST", "/v1/chat/completions", capital)[1])["choices"][0]["message"][
            "content"
        ]
    )
    assert [m["id"] for m in json.loads(server.call("GET", "/v1/models")[1])["data"]] == ["gemma-3-270m"]
    assert server.call("GET", "/slots")[0] != 200  # it would show the prompts of others

    phases = [found for line in server.lines() if (found := engine.phase(line))]
    assert phases[0] == "assembling model"
    assert {"loading weights", "starting server"} <= set(phases)
    server.process.terminate()
    assert server.process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_metrics_move_with_the_work_and_a_kill_is_a_kill(
    gemma: Make, context: Make, run: Make, folder: Path
) -> None:
    from gpuserved.telemetry.metrics_text import read

    engine = LlamacppEngine(folder / "cache")
    server = run(engine.launch(context(gemma(flags={"parallel": 1, "threads": 1}))))
    server.wait_ready()
    names = engine.metrics
    wanted = frozenset(names[key] for key in ("running", "waiting", "steps"))

    def figures() -> dict[str, float]:
        return read(server.call("GET", "/metrics")[1].encode(), wanted)

    assert figures()[names["running"]] == 0
    long = {"prompt": "Once upon a time", "max_tokens": 120, "ignore_eos": True, "stop": []}
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.call("POST", "/v1/completions", long)[1]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    seen: list[dict[str, float]] = []
    end = time.monotonic() + 60
    while time.monotonic() < end and any(thread.is_alive() for thread in threads):
        seen.append(figures())
        time.sleep(0.01)
    for thread in threads:
        thread.join(60)
    assert len(answers) == 2
    assert max(each[names["running"]] for each in seen) == 1
    assert max(each[names["waiting"]] for each in seen) == 1
    steps = [each[names["steps"]] for each in seen]
    assert len(set(steps)) > 5, "the step counter moves while a request is decoded, not only after it"

    server.process.kill()
    assert server.process.wait(60) == -signal.SIGKILL
    found = engine.cause(ExitInfo(None, signal.SIGKILL, 0.0), server.lines())
    assert found.kind is CauseKind.KILLED


def test_a_file_that_is_no_model_is_named(gemma: Make, context: Make, run: Make, folder: Path) -> None:
    engine = LlamacppEngine(folder / "cache")
    bad = folder / "bad.gguf"
    bad.write_bytes(b"not a model" * 100)
    wanted = gemma(model=str(bad))
    assert engine.check(wanted) == []
    server = run(engine.launch(context(wanted)))
    code = server.process.wait(60)
    assert code == 3
    found = engine.cause(ExitInfo(code, None, 0.0), server.lines())
    assert found.kind is CauseKind.MODEL_MISSING
    assert "\n" not in found.message


def test_a_missing_file_is_refused_before_and_named_after(
    gemma: Make, context: Make, run: Make, folder: Path
) -> None:
    engine = LlamacppEngine(folder / "cache")
    wanted = gemma(model=str(folder / "gone.gguf"))
    with pytest.raises(Invalid, match="there is no model file"):
        engine.check(wanted)
    server = run(engine.launch(context(wanted)))
    code = server.process.wait(60)
    found = engine.cause(ExitInfo(code, None, 0.0), server.lines())
    assert found.kind is CauseKind.MODEL_MISSING
    assert "gone.gguf" in found.message


def test_the_check_says_what_to_install(gemma: Make, folder: Path) -> None:
    bare = folder / "venv"
    import venv

    venv.create(bare, with_pip=False, symlinks=True)
    with pytest.raises(Invalid) as caught:
        LlamacppEngine(folder).check(gemma(python=str(bare / "bin" / "python")))
    assert "xllamacpp is not installed" in caught.value.message
    assert caught.value.hint == "pip install 'gpuserve[demo]'"


def test_settings_are_checked(gemma: Make, folder: Path) -> None:
    engine = LlamacppEngine(folder)
    with pytest.raises(Invalid, match="did you mean parallel"):
        engine.check(gemma(flags={"paralel": 2}))
    for flags in ({"parallel": 0}, {"threads": True}, {"stop": "x"}, {"template": "/nowhere.jinja"}):
        with pytest.raises(Invalid):
            engine.check(gemma(flags=flags))
    with pytest.raises(Invalid, match="cannot serve"):
        engine.check(gemma(model="meta-llama/Llama-3.1-8B-Instruct"))
    with pytest.raises(Invalid, match="tensor_parallel_size"):
        engine.check(gemma(tensor_parallel_size=2))


def test_an_own_model_keeps_its_own_template(gemma: Make, context: Make, folder: Path) -> None:
    argv = LlamacppEngine(folder).launch(context(gemma(model=str(folder / "own.gguf")))).argv
    assert not any(word.startswith(("--template", "--stop")) for word in argv)
    packaged = LlamacppEngine(folder).launch(context(gemma())).argv
    template = next(word.removeprefix("--template=") for word in packaged if word.startswith("--template="))
    assert Path(template).is_file()


def test_the_packaged_model_is_installed_where_tests_run() -> None:
    for package in PACKAGED["gemma3-270m"].packages:
        assert installed.has_module(sys.executable, package)
        assert importlib.util.find_spec(package) is not None


# --- putting the model together, with small pieces


@pytest.fixture
def small(folder: Path) -> tuple[PackagedModel, Callable[[str, str], Path]]:
    pieces = folder / "pieces"
    pieces.mkdir()
    contents = [b"a" * 100_000, b"b" * 50_000, b"c"]
    for n, content in enumerate(contents):
        (pieces / f"part{n}").write_bytes(content)
    whole = b"".join(contents)
    model = PackagedModel(
        "small",
        "small.gguf",
        hashlib.sha256(whole).hexdigest(),
        len(whole),
        tuple(("pkg", f"part{n}") for n in range(3)),
    )
    return model, lambda _package, name: pieces / name


def test_a_model_is_put_together_once(small: Any, folder: Path) -> None:
    model, source = small
    told: list[str] = []
    path = ensure(model, folder / "models", told.append, source)
    assert path.read_bytes()[99_999:100_001] == b"ab"
    inode = path.stat().st_ino
    assert ensure(model, folder / "models", told.append, source).stat().st_ino == inode
    assert len(told) == 1


def test_a_damaged_model_is_replaced(small: Any, folder: Path) -> None:
    model, source = small
    path = ensure(model, folder / "models", source=source)
    path.write_bytes(b"x" * model.size_bytes)  # the right size, the wrong bytes
    ensure(model, folder / "models", source=source)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
    path.write_bytes(b"short")
    ensure(model, folder / "models", source=source)
    assert path.stat().st_size == model.size_bytes


def test_a_damaged_piece_leaves_nothing_behind(small: Any, folder: Path) -> None:
    model, source = small
    source("pkg", "part1").write_bytes(b"z")
    with pytest.raises(ModelError, match="reinstall"):
        ensure(model, folder / "models", source=source)
    assert [p.name for p in (folder / "models").iterdir()] == [".small.gguf.lock"]


def test_a_model_that_cannot_be_written_says_where(small: Any, folder: Path) -> None:
    model, source = small
    (folder / "models").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot write the model to"):
        ensure(model, folder / "models", source=source)


def _wait_for_lock(folder: Path, model: PackagedModel, done: Any) -> None:
    ensure(model, folder / "models", source=lambda _package, name: folder / "pieces" / name)
    done.put("whole")


def test_concurrent_starts_wait_for_one_another(small: Any, folder: Path) -> None:
    model, _ = small
    models = folder / "models"
    models.mkdir()
    fork = multiprocessing.get_context("spawn")
    done = fork.Queue()
    with open(models / ".small.gguf.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        others = [fork.Process(target=_wait_for_lock, args=(folder, model, done)) for _ in range(2)]
        for other in others:
            other.start()
        assert not (models / "small.gguf").exists()
    assert [done.get(timeout=60), done.get(timeout=60)] == ["whole", "whole"]
    for other in others:
        other.join(60)
    assert (models / "small.gguf").stat().st_size == model.size_bytes
