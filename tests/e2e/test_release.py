"""From the recorded release to this tree: what runs on a user's machine while its files are replaced.

A daemon, router or shim of 0.1.0 reads these of the new files before anybody types `gpuserve upgrade`:

| what an old process executes late | verdict |
| --- | --- |
| a shim: `python -I -S .../gpuserved/shim/__main__.py`, at every start of a replica or router | kept: the protocol is fixed |
| a router's shim: `python -m gpuserved.router` with its old argv, when the router ends | kept, with all flags |
| the daemon: `python -m gpuserved.engines.sim serve ...`, `-m gpuserved.engines.llamacpp_server ...` | kept, with all flags |
| the daemon: `--template=.../engines/llamacpp_templates/plain.jinja`, for a packaged model | kept as a copy |
| the daemon: `python -m gpuserved.app.main FLAGS --check`, then the same without `--check` | kept, with all flags |
| systemd: `bin/gpuserved`, `bin/gpuserve down --yes --keep-profiles --unless-restarting UNIT` | kept |
| the daemon: `import gpuserved.engines.{vllm,llamacpp,command,sim_adapter}` at the first profile of that engine | refused in words: the \
new adapter would stand on the old protocol; a crash of what runs imports nothing |
| a router, a shim: imports of ours | none; everything is loaded at their start |
| a command that runs on (`events -f`, `up`): `cli.waiting`, `host.logtail` ... | harmless: it alone fails, and is typed again |
"""

from __future__ import annotations

import configparser
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import requests
from tests.e2e.box import Box, Json, kill, until
from tests.e2e.clients import PlainLoad, Stream, Streams, open_streams
from tests.e2e.releases import PACKAGE, RECORDED, Environment, all_drained, same, wheel_of_this_tree
from tests.e2e.texts import sim, toml

from gpuserved.api.errors import Refused
from gpuserved.app import main as app_main
from gpuserved.cli.parser import build
from gpuserved.engines.llamacpp import server as llamacpp_server
from gpuserved.engines.sim import flags as sim_flags
from gpuserved.router import main as router_main

pytestmark = pytest.mark.timeout(300)
OLD_SHIM = Path(__file__).parents[1] / "shim" / "recorded" / "0.1.0" / "gpuserved" / "shim" / "__main__.py"
MODEL = "tiny"
PROFILE = sim(
    MODEL,
    flags={"step_ms": 50, "load_s": 0.5},
    tables={"limits": {"drain_s": 60}, "restart": {"backoff_s": 0.2}},
)
ENDLESS_TOKENS = 4000
SHORT_TOKENS = 40
MakeBox = Callable[[Path | None], Box]


@pytest.fixture(scope="module")
def new_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of_this_tree(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def box(boxes: MakeBox) -> Box:
    made = boxes(None)
    (made.root / "gpuserved.toml").write_text("[router]\nrouters = 2\n")
    return made


def start(box: Box, release: Environment) -> Json:
    """Its daemon in the background, with two replicas and two routers; the snapshot of it."""
    release.ok(box, "up", box.write(MODEL, PROFILE), "--listen", f"127.0.0.1:{box.port}")
    found = box.look()
    assert release.runs(found["supervisor"]["pid"])
    assert [row["state"] for row in found["replicas"]] == ["READY", "READY"]
    return found


def begun(box: Box, tokens: int) -> Streams:
    streams = open_streams(box.endpoint, MODEL, 4, tokens)
    streams.wait_begun()
    return streams


def broken(streams: Streams) -> list[Stream]:
    return [stream for stream in streams.join() if not stream.whole]


def told(box: Box, release: Environment) -> list[str]:
    """The messages of the event history."""
    lines = release.ok(box, "events", "--since", "1h", "--json").splitlines()
    return [event["message"] or "" for event in map(json.loads, lines)]


def test_it_is_upgraded_under_load_and_goes_back(box: Box, new_wheel: Path) -> None:
    """Its shims are older still: the recorded ones. Going back may be refused one day; it never loses a replica or a request."""
    old, new = Environment(box.top / "old", RECORDED), Environment(box.top / "new", new_wheel)
    launcher = old.packages / "gpuserved" / "host" / "shimlaunch.py"
    program = 'PROGRAM = Path(gpuserved.__file__).parent / "shim" / "__main__.py"'
    assert program in launcher.read_text()
    launcher.write_text(launcher.read_text().replace(program, f"PROGRAM = Path({str(OLD_SHIM)!r})"))
    before = start(box, old)
    for row in before["replicas"]:
        assert str(OLD_SHIM).encode() in Path(f"/proc/{row['shim_pid']}/cmdline").read_bytes()
    with PlainLoad(box.endpoint, MODEL) as load:
        endless, short = begun(box, ENDLESS_TOKENS), begun(box, SHORT_TOKENS)
        new.ok(box, "upgrade", "--force")
        upgraded = box.look()
        assert all(new.runs(pid) for pid in (upgraded["supervisor"]["pid"], *upgraded["router"]["pids"]))
        assert [row["state"] for row in upgraded["replicas"]] == ["READY", "READY"]
        same(box, before)
        assert f"gpuserved PID {before['supervisor']['pid']} serves {box.endpoint}" in told(box, new)
        assert broken(short) == []
        endless.flow()
        load.reach(10)
        short = begun(box, SHORT_TOKENS)
        back = old.run(box, "upgrade", "--force")
        assert back.returncode in {0, 1, 4}, back.stderr
        assert back.returncode == 0 or back.stderr.strip(), "it says why not"
        same(box, before)
        assert broken(short) == []
        endless.flow()
        load.reach(10)
    endless.leave()
    serving = old if back.returncode == 0 else new
    assert serving.runs(box.look()["supervisor"]["pid"])
    # Whoever serves now is a whole daemon, and the way forward is open.
    serving.ok(box, "drain", "tiny-0")
    serving.ok(box, "undrain", "tiny-0")
    new.ok(box, "upgrade", "--force")
    same(box, before)
    all_drained(box)


def test_its_files_are_replaced_under_it(box: Box, new_wheel: Path) -> None:
    """As `pip install -U` does: what ends then, before anybody has typed `gpuserve upgrade`, comes back from the new files."""
    installed = Environment(box.top / "installed", RECORDED)
    before = start(box, installed)
    assert (installed.packages / "gpuserved" / "supervisor").exists()
    installed.install(new_wheel)
    assert not (installed.packages / "gpuserved" / "supervisor").exists(), "the old files are gone"

    assert len(before["router"]["pids"]) == 2
    for pid in before["router"]["pids"]:
        kill(pid)
    until(lambda: answers(box), "the URL answers again", 20)
    routers = until(lambda: new_pids(box, before["router"]["pids"]), "both routers are back", 20)
    assert len(routers) == 2

    victim = before["replicas"][1]
    with PlainLoad(box.endpoint, MODEL) as load:
        kill(victim["pid"])
        restarted = box.wait_restarted(victim, 60)
        load.reach(10)
    assert (restarted["state"], restarted["restarts"]) == ("READY", 1)
    assert box.look()["supervisor"]["pid"] == before["supervisor"]["pid"], "the old daemon did that"
    for looking in (["status"], ["gpus"], ["keys"], ["logs", "tiny-0"], ["crash", "tiny-1"], ["reload"]):
        installed.ok(box, *looking)
    other = box.write(
        "other",
        toml(
            {"command": {"argv": ["/bin/sh", "-c", "sleep 600; : {socket}"]}},
            model="m",
            served_name="other",
            engine="command",
        ),
    )
    refused = installed.run(box, "apply", other, "--no-wait")
    assert refused.returncode == 4, refused.stderr
    assert "gpuserve upgrade" in refused.stderr
    installed.ok(box, "--check", program="gpuserved")

    before = box.look()
    with PlainLoad(box.endpoint, MODEL) as load:
        streams = begun(box, SHORT_TOKENS)
        installed.ok(box, "upgrade", "--force")
        assert broken(streams) == []
        load.reach(10)
    same(box, before)
    assert box.look()["supervisor"]["pid"] != before["supervisor"]["pid"]
    # The new daemon has all engines in memory: it needs no file of theirs when it meets another one's first profile.
    shutil.rmtree(installed.packages / "gpuserved" / "engines" / "command")
    box.ok("apply", other, "--no-wait")


def test_what_is_under_way_goes_on(box: Box, new_wheel: Path) -> None:
    """A rolling change, a replica on its way out, a GPU set aside, a past with a crash: all of it is in the files of the old one."""
    old, new = Environment(box.top / "old", RECORDED), Environment(box.top / "new", new_wheel)
    tables: Mapping[str, Mapping[str, object]] = {"limits": {"drain_s": 120}, "restart": {"backoff_s": 0.2}}
    rolled = [
        sim(
            "red",
            flags={"step_ms": step_ms, "load_s": load_s, "gpus": 3, "gpu_memory_gib": 24},
            tables=tables,
            gpus="all",
        )
        for step_ms, load_s in ((50, 0.2), (40, 2.0))
    ]
    paths = box.write("red", rolled[0]), box.write("blue", sim("blue", flags={"step_ms": 50}, tables=tables))
    old.ok(box, "up", *paths, "--listen", f"127.0.0.1:{box.port}")
    crashed = box.replica("red-1")
    kill(crashed["pid"])
    box.wait_restarted(crashed, 60)
    old.ok(box, "quarantine", "2")
    streams = open_streams(box.endpoint, "blue", 4, ENDLESS_TOKENS)
    streams.wait_begun()
    old.ok(box, "scale", "blue", "1")
    before = {row["id"]: row for row in box.look()["replicas"]}
    assert before["blue-1"]["leaving"]
    old.ok(box, "apply", "--no-wait", box.write("red", rolled[1]))
    until(
        lambda: any(row["state"] == "STARTING" and row["pid"] for row in box.look()["replicas"]),
        "one starts",
        60,
    )
    new.ok(box, "upgrade", "--force")
    assert box.replica("blue-1")["leaving"]
    streams.flow()
    outcome = until(lambda: box.look()["rollouts"][0]["outcome"], "the change ends", 60)
    assert outcome == "done"
    after = {row["id"]: row for row in box.look()["replicas"]}
    for name in ("red-0", "red-1"):
        assert after[name]["generation"] == before[name]["generation"] + 1
        assert after[name]["restarts"] == before[name]["restarts"]
    assert (after["red-1"]["restarts"], after["blue-0"]["pid"]) == (1, before["blue-0"]["pid"])
    assert [gpu["state"] for gpu in box.look()["gpus"]] == ["OK", "OK", "QUARANTINED"]
    assert "SIGKILL" in new.ok(box, "crash", "red-1")
    assert any("API process killed by SIGKILL" in line for line in told(box, new))
    streams.leave()
    until(lambda: "blue-1" not in {row["id"] for row in box.look()["replicas"]}, "blue-1 has left", 60)


def answers(box: Box) -> bool:
    try:
        return requests.get(f"{box.endpoint}/v1/models", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def new_pids(box: Box, old: list[int]) -> list[int] | None:
    now: list[int] = box.look()["router"]["pids"]
    return now if len(now) == len(old) and not set(now) & set(old) else None


# --- each command line that 0.1.0 may still execute

LLAMACPP_ARGV = [
    "--uds", "/r/engine.sock", "--model", "gemma3-270m", "--models-dir", "/c/models", "--alias", "gemma", "--ctx-per-slot", "2048",
    "--parallel=4", "--threads=2", "--batch-size=1", "--ubatch-size=1", "--gpu-layers=0", "--cache-ram-mib=64", "--max-tokens=9",
    "--template=/t/plain.jinja", "--stop=\n\nUser:",
]  # fmt: skip
ROUTER_ARGV = [
    "--fd", "3", "--table", "/r/routing.json", "--control", "/r/ctl.sock", "--counts", "/r/counts", "--row", "1",
    "--access-log", "/l/access.log",
]  # fmt: skip
DAEMON_ARGV = [
    "--background", "--config", "/e/gpuserved.toml", "--profiles", "/e/profiles", "--listen", "127.0.0.1:8000",
    "--keys-file", "/e/keys", "--insecure", "--check",
]  # fmt: skip


def test_old_command_lines_are_read() -> None:
    """Those whose every flag the tests above do not meet."""
    assert llamacpp_server.parse(LLAMACPP_ARGV).ctx_per_slot == 2048
    assert router_main._arguments(ROUTER_ARGV).row == 1
    assert app_main.parser().parse_args(DAEMON_ARGV).check
    assert sim_flags.parse(
        ["sim/tiny", "--uds", "/r/engine.sock", "--served-model-name", "tiny", "--max-model-len", "8"]
    )


@pytest.mark.parametrize(
    "module", ["app.main", "router", "engines.sim", "engines.llamacpp_server", "cli.main"]
)
def test_old_entry_points_are_programs(module: str) -> None:
    arguments = ["serve", "--help"] if module == "engines.sim" else ["--help"]
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-m", f"gpuserved.{module}", *arguments],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout[:6]) == (0, "usage:"), done.stderr


def test_the_llamacpp_server_needs_no_library_of_ours_and_finds_the_old_template() -> None:
    """Its interpreter has xllamacpp, and perhaps nothing that gpuserve depends on."""
    old, new = (
        PACKAGE / "engines" / name / "plain.jinja" for name in ("llamacpp_templates", "llamacpp/templates")
    )
    assert old.read_text() == new.read_text()
    program = "import sys, gpuserved.engines.llamacpp_server; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": str(PACKAGE.parent)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert set(done.stdout.split()) <= sys.stdlib_module_names | {"gpuserved", "__main__"}


@pytest.mark.parametrize(
    "path", ["vllm.VllmEngine", "llamacpp.LlamacppEngine", "command.CommandEngine", "sim_adapter.SimEngine"]
)
def test_an_engine_that_an_old_daemon_imports_late_is_refused(path: str, tmp_path: Path) -> None:
    module, _, name = path.partition(".")
    adapter = getattr(importlib.import_module(f"gpuserved.engines.{module}"), name)
    with pytest.raises(Refused, match="have been replaced") as refused:
        adapter(tmp_path)
    assert "gpuserve upgrade" in (refused.value.hint or "")


def test_the_units_of_the_release_name_commands_that_exist() -> None:
    """An installed unit stays as it is when the wheel is replaced."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    with zipfile.ZipFile(RECORDED) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/gpuserved.service"))
        unit.read_string(wheel.read(name).decode())
    commands = [shlex.split(unit["Service"][key].lstrip("-")) for key in ("ExecStart", "ExecStop")]
    assert [Path(words[0]).name for words in commands] == ["gpuserved", "gpuserve"]
    app_main.parser().parse_args(commands[0][1:])
    stop = build().parse_args(commands[1][1:])
    assert (stop.yes, stop.keep_profiles) == (True, True)
