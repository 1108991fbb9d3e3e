"""`gpuserve bench` against a real daemon, and the command line it gives vLLM's load test."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.cli.conftest import Shell

from gpuserved.api.errors import Refused
from gpuserved.bench.plan import Lengths, Shape
from gpuserved.bench.vllm import Where, command_line, find_vllm


def test_the_same_load_through_the_router_and_past_it(served: Shell) -> None:
    done = served(
        "bench", "--compare", "--rate", "40", "--requests", "20", "--output-tokens", "4-6", "--prompt-tokens", "20",
        "--goodput", "e2e:60000", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["runs"].keys() == {"router", "direct"}
    for run in answer["runs"].values():
        assert run["outcomes"]["ok"] == run["requests"] == 20
        assert run["replicas"].keys() == {"demo-0", "demo-1"}
        assert 80 <= run["output_tokens"] <= 120
        assert run["ttft_ms"]["p50"] > 0
        assert run["goodput_pct"] == 100


def test_the_figures_for_people_name_replicas(served: Shell) -> None:
    url = json.loads(served("status", "--json").stdout)["endpoint"]
    done = served(
        "bench",
        "--url",
        f"{url}/v1",
        "--rate",
        "40",
        "--requests",
        "5",
        "--output-tokens",
        "3",
        "--no-stream",
    )
    assert done.returncode == 0, done.stderr
    assert "demo-0: " in done.stdout
    assert "end to end" in done.stdout
    assert "time to first token" not in done.stdout, "nobody can measure it without a stream"


def test_failures_are_counted_and_the_exit_code_says_so(served: Shell) -> None:
    done = served(
        "bench",
        "--model",
        "demo-model",
        "--requests",
        "2",
        "--rate",
        "50",
        "--prompt-tokens",
        "9000",
        "--json",
    )
    assert done.returncode == 1
    run = json.loads(done.stdout)["runs"]["router"]
    assert run["outcomes"]["error"] == 2
    assert any("400" in why for why in run["failures"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "--rate 0"),
        (["--prompt-tokens", "9-3"], "--prompt-tokens 9-3"),
        (["--goodput", "itl:5"], "--goodput itl:5"),
        (["--shared-prefix", "500"], "longer than the shortest prompt, 128"),
        (["--url", "ftp://x"], "no http:// URL"),
        (["--url", "http://127.0.0.1:9", "--direct"], "need a daemon"),
    ],
)
def test_bad_usage_names_the_flag_and_the_fix(shell: Shell, arguments: list[str], said: str) -> None:
    done = shell("bench", *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_vllms_load_test_gets_the_same_load(tmp_path: Path) -> None:
    shape = Shape(
        rate_per_s=8, requests=200, prompt=Lengths(100, 300), output=Lengths(64, 64), prefix_tokens=50, seed=3
    )
    argv = command_line(tmp_path / "vllm", Where("http://h:1", "llama", "/models/llama"), shape, (50, 99))
    flags = dict(zip(argv[3::2], argv[4::2], strict=False))
    assert argv[1:3] == ["bench", "serve"]
    assert flags["--base-url"] == "http://h:1"
    assert flags["--tokenizer"] == "/models/llama"
    assert (flags["--random-prefix-len"], flags["--random-input-len"]) == ("50", "150")
    assert flags["--random-range-ratio"] == "0.500"
    assert (flags["--request-rate"], flags["--num-prompts"], flags["--seed"]) == ("8", "200", "3")


def test_vllm_is_found_beside_the_replicas_own_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(Refused, match="neither"):
        find_vllm([str(tmp_path / "python")])
    program = tmp_path / "vllm"
    program.write_text("")
    os.chmod(program, 0o755)
    assert find_vllm([str(tmp_path / "python"), "-m", "vllm"]) == program
