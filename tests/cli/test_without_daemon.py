from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SIM = 'model = "sim/demo"\nengine = "sim"\nreplicas = 2\nmax_model_len = 4096\n'


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["status"], 3, "gpuserve up"),
        (["down", "--yes"], 3, "no daemon"),
        (["gpus"], 3, "no daemon"),
        (["events"], 3, "no daemon"),
        (["events", "--since", "yesterday"], 2, "'yesterday' is no time: 10m"),
        (["stop", "demo-0"], 3, "no daemon"),
        (["chat", "hello"], 3, "no daemon"),
        (["logs", "demo-0"], 3, "no daemon"),
        (["apply", "demo"], 3, "no daemon"),
        (["keys", "remove", "nobody"], 2, "keys"),
        (["keys", "add"], 2, "needs a name"),
        (["keys", "add", "a:b"], 2, "needs a name"),
        (["keys", "list", "alice"], 2, "keys add"),
        ([], 2, ""),
        (["bogus"], 2, "invalid choice"),
        (["stop"], 2, "REPLICA"),
        (["logs"], 2, "name one replica"),
        (["logs", "demo-0", "-n", "-3"], 2, "invalid number value"),
        (["apply", "nowhere-at-all"], 2, "no profile"),
        (["up", "nowhere-at-all"], 2, "no profile"),
        (["up", "demo", "--port", "70000"], 2, "invalid port value"),
        (["up", "demo", "--listen", "nowhere"], 2, "not an address"),
        (["up", "demo", "--listen", "0.0.0.0:8000"], 2, "no API keys"),
        (["up", "demo", "--listen", "1:1", "--port", "1"], 2, "not allowed with"),
        (["up", "demo", "--config", "missing.toml"], 2, "cannot be read"),
        (["up", "demo", "--socket", "/nowhere/s"], 3, "GPUSERVE_ROOT"),
        (["plan", "demo", "--inventory", "missing.json"], 2, "cannot be read"),
    ],
)
def test_exit_codes(shell: Any, arguments: list[str], code: int, says: str) -> None:
    done = shell(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (shell.root / "run").exists(), "a refused command starts nothing"


def test_errors_are_json_where_json_was_asked_for(shell: Any) -> None:
    done = shell("status", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["code"] == "unavailable"


def test_a_bad_profile_starts_nothing_and_says_where(shell: Any) -> None:
    path = shell.profile("bad", 'model = "a/b"\nmax_modl_len = 3\n')
    done = shell("up", path)
    assert done.returncode == 2
    assert f"{path}:2: max_modl_len: unknown key" in done.stderr
    assert "did you mean max_model_len?" in done.stderr
    assert not (shell.root / "run").exists()


def test_two_targets_of_one_name_are_refused(shell: Any) -> None:
    (shell.root / "other").mkdir()
    path = shell.profile("demo", SIM)
    twin = shell.root / "other" / "demo.toml"
    twin.write_text(SIM + "# another\n", "utf-8")
    done = shell("apply", path, str(twin))
    assert done.returncode == 2
    assert "two targets are named demo" in done.stderr


def test_plan_needs_no_daemon(shell: Any) -> None:
    path = shell.profile("p", SIM + "tensor_parallel_size = 2\n[sim]\ngpus = 4\n")
    found = json.loads(shell("plan", path, "--json").stdout)
    assert found["fits"]
    assert [(one["replica"], one["gpus"]) for one in found["placements"]] == [
        ("p-0", [0, 1]),
        ("p-1", [2, 3]),
    ]
    assert "gpuserved.engines.sim" in found["placements"][0]["command"]
    assert found["placements"][0]["kv_cache_bytes"] is None


def test_a_plan_that_does_not_fit_is_refused_with_json(shell: Any) -> None:
    gpus = [
        {"index": n, "uuid": f"GPU-{n}", "name": "H100", "memory_total_bytes": 80 * 2**30} for n in range(4)
    ]
    (shell.root / "four.json").write_text(json.dumps({"gpus": gpus}), "utf-8")
    path = shell.profile("big", 'model = "a/b"\nreplicas = 3\ntensor_parallel_size = 2\n')
    done = shell("plan", path, "--inventory", "four.json", "--json")
    assert done.returncode == 4
    refusal = json.loads(done.stdout)["refusal"]
    assert (refusal["code"], refusal["hint"]) == ("does_not_fit", "replicas = 2, or tensor_parallel_size = 1")
    plain = shell("plan", path, "--inventory", "four.json")
    assert plain.returncode == 4
    assert "does not fit" in plain.stdout
    path = shell.profile("fits", 'model = "a/b"\nreplicas = 2\ntensor_parallel_size = 2\n')
    done = shell("plan", path, "--inventory", "four.json", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert [one["gpus"] for one in found["placements"]] == [[0, 1], [2, 3]]
    assert "max_model_len_unset" in [warning["code"] for warning in found["warnings"]]
    (shell.root / "four.json").write_text('{"gpus": [{"index": 0}]}', "utf-8")
    assert shell("plan", path, "--inventory", "four.json").returncode == 2


@pytest.mark.parametrize("verb", ["up", "apply", "down", "plan", "status", "gpus", "events", "logs", "start", "stop", "restart", "drain", "undrain", "scale", "reload", "chat", "import-llamafactory", "schema", "doctor", "completion", "version"])  # fmt: skip
def test_every_command_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from gpuserved.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  gpuserve {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_verbs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from gpuserved.cli.main import main

    assert main(["completion", name]) == 0
    assert "undrain" in capsys.readouterr().out


def test_version_works_without_a_daemon(shell: Any) -> None:
    assert json.loads(shell("version", "--json").stdout)["daemon"] is None


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom gpuserved.cli.main import main\nmain(['status', '--socket', sys.argv[1]])\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'aiohttp', 'asyncio', 'httpx', 'rich', 'tomli', 'psutil', 'textual'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"
