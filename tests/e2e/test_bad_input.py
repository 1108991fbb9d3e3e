"""Bad input gets a clear error, and what runs is not touched by it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.e2e.box import GPUSERVED, Box, until
from tests.e2e.clients import QUESTION
from tests.e2e.texts import SERVED, VLLM_PYTHON, Fleet, sim, vllm_profile


@contextlib.contextmanager
def nothing_changes(fleet: Fleet) -> Iterator[None]:
    """The block leaves desired state, processes and generations as they were, and the URL answering."""

    def state() -> object:
        now = fleet.look()
        rows = [(row["id"], row["state"], row["pid"], row["generation"]) for row in now["replicas"]]
        return now["generation"], now["supervisor"]["pid"], now["router"]["pids"], rows

    before = state()
    yield
    assert state() == before
    body: dict[str, Any] = {"model": SERVED, "messages": QUESTION, "max_tokens": 4}
    assert requests.post(f"{fleet.endpoint}/v1/chat/completions", json=body, timeout=60).status_code == 200


def refused(fleet: Fleet, name: str, text: str, *codes: int) -> str:
    """What `gpuserve apply` says about a profile it must not take."""
    path = fleet.write(name, text)
    done = fleet.run("apply", path)
    assert done.returncode in codes, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_unknown_key_names_file_line_key_and_the_nearest(fleet: Fleet) -> None:
    text = 'model = "m"\nengine = "sim"\n\n[limits]\nqueue = 5\ndrain = 5\n'
    with nothing_changes(fleet):
        said = refused(fleet, "typo", text, 2)
    assert f"{fleet.profiles / 'typo.toml'}:6" in said
    assert "limits.drain" in said
    assert "did you mean drain_s" in said


def test_an_unknown_key_in_a_good_profile_keeps_the_old_one(fleet: Fleet) -> None:
    """The profile that runs is the one that is mistyped: its replicas stay."""
    with nothing_changes(fleet):
        said = refused(fleet, "tiny", "replica = 3\n" + fleet.flavour.profile, 2)
    assert "did you mean replicas" in said


def test_toml_that_is_no_toml(fleet: Fleet) -> None:
    with nothing_changes(fleet):
        said = refused(fleet, "broken", 'model = "m\nreplicas = 2\n', 2)
    assert f"{fleet.profiles / 'broken.toml'}:1" in said


def test_one_bad_profile_of_two_applies_neither(fleet: Fleet) -> None:
    good = fleet.write("good", sim("good", replicas=1))
    bad = fleet.write("bad", "colour = 1\n" + sim("bad", replicas=1))
    with nothing_changes(fleet):
        done = fleet.run("apply", good, bad)
    assert done.returncode == 2
    assert "colour" in done.stderr


def test_an_unknown_flag_of_the_installed_engine(fleet: Fleet, tmp_path: Path) -> None:
    if fleet.flavour.engine == "vllm":
        (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', "utf-8")
        text = vllm_profile(tmp_path, "flag", {"no_such_flag": 3, "enforce_eagr": True})
    else:
        text = sim("flag", flags={"no_such_flag": 3, "lod_s": 1.0})
    with nothing_changes(fleet):
        said = refused(fleet, "flag", text, 2)
    assert "no_such_flag" in said or "no-such-flag" in said


def test_a_missing_model_folder(fleet: Fleet) -> None:
    missing = fleet.top / "no" / "such" / "model"
    text = vllm_profile(missing, "gone", {}) if VLLM_PYTHON else sim("gone").replace("sim/tiny", str(missing))
    with nothing_changes(fleet):
        said = refused(fleet, "gone", text, 2)
    assert str(missing) in said


def test_unknown_names_on_the_command_line(fleet: Fleet) -> None:
    with nothing_changes(fleet):
        for arguments in (("stop", "tiny-9"), ("logs", "nobody-0"), ("scale", "nobody", "2")):
            done = fleet.run(*arguments)
            assert done.returncode == 2, (arguments, done)
            assert arguments[1] in done.stderr
        assert fleet.run("apply", str(fleet.top / "absent.toml")).returncode == 2
        assert fleet.run("no-such-command").returncode == 2
        assert fleet.run("scale", "tiny", "-1").returncode == 2


def test_a_second_daemon_on_the_same_root(fleet: Fleet) -> None:
    first = fleet.look()["supervisor"]["pid"]
    with nothing_changes(fleet):
        second = fleet.run(command=GPUSERVED)
    assert second.returncode != 0
    assert str(first) in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\x16\x03\x01 what\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nnot json!",
        b'POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"profiles": 1}',
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
        b"{}\n",
    ],
    ids=["binary", "version", "not-json", "wrong-type", "long-line", "method", "ndjson"],
)
def test_garbage_on_the_control_socket(fleet: Fleet, garbage: bytes) -> None:
    with nothing_changes(fleet), socket.socket(socket.AF_UNIX) as link:
        link.settimeout(20)
        link.connect(str(fleet.roots.control_socket))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            link.sendall(garbage)
            link.shutdown(socket.SHUT_WR)
            answer = link.recv(65536)
            assert not answer or int(answer.split()[1]) >= 400


def test_a_control_client_that_says_nothing_holds_nobody_up(fleet: Fleet) -> None:
    with contextlib.ExitStack() as links:
        for _ in range(30):
            link = links.enter_context(socket.socket(socket.AF_UNIX))
            link.connect(str(fleet.roots.control_socket))
        assert fleet.status()["replicas"]


@pytest.mark.fault(7)
def test_a_port_in_use_names_its_holder_and_starts_nothing(box: Box) -> None:
    holder = [sys.executable, "-c", "import socket, sys\ns = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nprint('held', flush=True)\nsys.stdin.read()", str(box.port)]  # fmt: skip
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"held\n"
        path = box.write("late", sim("late", replicas=1))
        done = box.run("up", path, "--listen", f"127.0.0.1:{box.port}", "--wait", "30", timeout_s=60)
        process.stdin.close()
    said = done.stderr + done.stdout
    assert done.returncode in {1, 4}, said
    assert str(box.port) in said
    assert str(process.pid) in said
    until(lambda: not box.alive(), "nothing was left running", 60)
    assert box.run("status").returncode == 3


def test_a_very_long_root_works(boxes: Callable[[Path | None], Box], tmp_path: Path) -> None:
    root = tmp_path.joinpath(*["a-rather-long-folder-name"] * 8) / "root"
    box = boxes(root)
    assert len(os.fsencode(root)) > 200
    box.up({"far": sim("far", replicas=1)})
    assert box.ok("chat", "My order is late.").strip()
    assert (root / "state" / "fleet.json").exists()
    assert box.roots.run.stat().st_mode & 0o777 == 0o700
    box.down()
