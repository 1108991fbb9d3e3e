import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.core.cause import CauseKind, ExitInfo
from gpuserved.core.profile import CommandSpec, EngineName
from gpuserved.engines.command.adapter import CommandEngine
from gpuserved.engines.registry import Engines

Make = Callable[..., Any]


@pytest.fixture
def engine(folder: Path) -> CommandEngine:
    return CommandEngine(folder / "cache", {"PATH": "/usr/bin:/bin", "HOME": "/home/op"})


@pytest.fixture
def wanted(profile: Make) -> Make:
    def make(*argv: str, **fields: Any) -> Any:
        return profile(engine=EngineName.COMMAND, command=CommandSpec(argv), **fields)

    return make


def test_placeholders_are_filled_and_other_braces_stay(
    engine: CommandEngine, wanted: Make, context: Make
) -> None:
    made = context(wanted("sh", "-c", "serve {model} --uds={socket} --name {replica} '{\"a\": {b}}'"))
    launch = engine.launch(made)
    socket = made.run_dir / "engine.sock"
    assert launch.argv[0].endswith("/sh")
    assert launch.argv[2] == f"serve owner/model --uds={socket} --name p-0 '{{\"a\": {{b}}}}'"
    assert launch.address == f"unix:{socket}"


def test_a_port_is_used_where_there_is_no_socket(engine: CommandEngine, wanted: Make, context: Make) -> None:
    profile = wanted("sh", "--port", "{port}")
    assert engine.wants_port(profile)
    launch = engine.launch(context(profile, port=40123))
    assert launch.address == "tcp:127.0.0.1:40123"
    assert launch.argv[1:] == ("--port", "40123")
    assert not engine.wants_port(wanted("sh", "{socket}", "{port}"))


def test_a_value_is_never_expanded_twice(engine: CommandEngine, wanted: Make, context: Make) -> None:
    launch = engine.launch(context(wanted("sh", "{model}", "{socket}", model="{port}")))
    assert launch.argv[1] == "{port}"


def test_a_real_process_gets_the_socket_and_the_environment(
    engine: CommandEngine, wanted: Make, context: Make, run: Make
) -> None:
    code = (
        "import os, sys, socketserver, http.server\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        body = os.environ['GPUSERVE_REPLICA'].encode()\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(body)\n"
        "    def log_message(self, *a): pass\n"
        "    def address_string(self): return ''\n"
        "socketserver.UnixStreamServer(sys.argv[1], H).serve_forever()\n"
    )
    profile = wanted(sys.executable, "-c", code, "{socket}")
    assert engine.check(profile) == []
    server = run(engine.launch(context(profile)))
    server.wait_ready()
    assert server.call("GET", "/")[1] == "p-0"


def test_what_cannot_work_is_refused(engine: CommandEngine, wanted: Make, profile: Make) -> None:
    with pytest.raises(Invalid, match=r"neither \{socket\} nor \{port\}"):
        engine.check(wanted("sh", "--listen", "0.0.0.0:80"))
    with pytest.raises(Invalid, match="cannot be run"):
        engine.check(wanted("/no/such/server", "{socket}"))
    with pytest.raises(Invalid, match="needs a command"):
        engine.check(profile(engine=EngineName.COMMAND))


def test_the_upstream_name(engine: CommandEngine, wanted: Make) -> None:
    assert engine.upstream_model(wanted("sh", "{socket}")) == "owner/model"
    assert engine.upstream_model(wanted("sh", "{socket}", "--name={served_name}")) is None
    assert engine.upstream_model(wanted("sh", "{socket}", "--served-model-name", "m")) is None
    assert engine.upstream_model(wanted("sh", "{socket}", "--format", "gemma")) == "owner/model"


def test_the_cause_quotes_the_last_line(engine: CommandEngine) -> None:
    found = engine.cause(ExitInfo(2, None, 0.0), ["starting", "fatal: no such model", ""])
    assert found.kind is CauseKind.EXITED
    assert "fatal: no such model" in found.message
    assert (
        engine.cause(ExitInfo(1, None, 0.0), ["OSError: Address already in use"]).kind
        is CauseKind.PORT_IN_USE
    )
    assert engine.cause(ExitInfo(None, 11, 0.0), ["x"]).kind is CauseKind.KILLED


@pytest.mark.parametrize("name", list(EngineName))
def test_the_registry_knows_every_engine_by_name(name: EngineName, folder: Path) -> None:
    assert Engines(folder).named(name).name == name.value


def test_the_paths_of_a_command_are_its_profiles(wanted: Make, folder: Path) -> None:
    engines = Engines(folder)
    plain = wanted("sh", "{socket}")
    own = replace(
        plain, command=CommandSpec(("sh", "{socket}"), health_path="/ready", metrics_path="/metrics")
    )
    for profile, paths in (
        (plain, ("/health", None)),
        (own, ("/ready", "/metrics")),
        (plain, ("/health", None)),
    ):
        adapter = engines.get(profile)
        assert (adapter.health_path(profile), adapter.metrics_path(profile)) == paths
