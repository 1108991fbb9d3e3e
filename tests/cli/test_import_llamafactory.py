"""`gpuserve import-llamafactory` as it is typed, up to a comparison of prompts with a running engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuserved.config.profile import load_profile

VERB = "import-llamafactory"
QWEN = "model_name_or_path: Qwen/Qwen3-4B-Instruct-2507\ntemplate: qwen3_nothink\ninfer_backend: vllm\n"
# What render_prompts.py uses of LlamaFactory, over the look-alike's own tokenizer: the prompts are then known to be the same.
LLAMAFACTORY = """
import sys, types
from gpuserved.engines.sim.tokens import encode_chat
class Template:
    def __init__(self, extra): self.extra = extra
    def encode_oneturn(self, tokenizer, messages, system, tools):
        assert messages[-1] == {"role": "assistant", "content": ""} and tools is None
        turns = [("system", system + self.extra)] if system else []
        return encode_chat(turns + [(m["role"], m["content"]) for m in messages[:-1]]), []
def get_infer_args(args):
    assert args["infer_backend"] == "huggingface"
    return args, args, None, None
for name, parts in {
    "hparams": {"get_infer_args": get_infer_args},
    "model": {"load_tokenizer": lambda args: {"tokenizer": None}},
    "data": {"get_template_and_fix_tokenizer": lambda tokenizer, args: Template("!" if args["template"] == "other" else "")},
}.items():
    module = types.ModuleType("llamafactory." + name)
    module.__dict__.update(parts)
    sys.modules["llamafactory." + name] = module
"""


@pytest.fixture
def file(shell: Any) -> Path:
    path: Path = shell.root / "lf.yaml"
    path.write_text(QWEN)
    return path


def test_the_profile_alone_goes_to_standard_output(shell: Any, file: Path) -> None:
    done = shell(VERB, str(file), "vllm_maxlen=2048")
    assert done.returncode == 0, done.stderr
    assert load_profile(done.stdout, "p.toml", "p").max_model_len == 2048
    assert "vllm_gpu_util -> [vllm] gpu_memory_utilization" in done.stderr


def test_a_file_is_written_whole_and_never_replaced_unasked(shell: Any, file: Path) -> None:
    out = shell.root / "qwen.toml"
    done = shell(VERB, str(file), "-o", "qwen.toml", API_PORT="9000")
    assert done.returncode == 0, done.stderr
    assert "next: gpuserve up qwen.toml --listen 0.0.0.0:9000" in done.stdout
    text = out.read_text()
    assert load_profile(text, str(out), "qwen").model == "Qwen/Qwen3-4B-Instruct-2507"
    out.write_text("# mine\n")
    again = shell(VERB, str(file), "-o", "qwen.toml")
    assert (again.returncode, out.read_text()) == (4, "# mine\n")
    assert shell(VERB, str(file), "-o", "qwen.toml", "--force").returncode == 0
    assert out.read_text() == text
    assert [path.name for path in shell.root.iterdir() if "qwen" in path.name] == ["qwen.toml"]


def test_a_refusal_writes_nothing_and_is_json_where_json_was_asked_for(shell: Any, file: Path) -> None:
    file.write_text(QWEN + "learning_rate: 1e-4\nresize_vocab: true\n")
    done = shell(VERB, str(file), "-o", "x.toml", "--json")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert found["refusal"]["code"] == "llamafactory_key_unsupported"
    assert "lf.yaml:4:1: learning_rate" in found["refusal"]["message"]
    assert "lf.yaml:5:1: resize_vocab" in found["refusal"]["message"]
    assert found["profile"] is None
    assert not (shell.root / "x.toml").exists()
    assert {key["key"] for key in found["keys"]} >= {
        "model_name_or_path",
        "template",
        "learning_rate",
        "resize_vocab",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["missing.yaml"], 2, "no such file"),
        (["lf.yaml", "--port", "8001"], 2, "unrecognized"),
        (["lf.yaml", "port"], 2, "LlamaFactory takes KEY=VALUE"),
        (["lf.yaml", "-o", "x.yaml"], 2, "ends in .toml"),
        (["lf.yaml", "-o", "no/x.toml"], 2, "there is no folder"),
        (["lf.yaml", "template=mine"], 4, "template_mismatch"),
        (["lf.yaml", "--check-template", "http://127.0.0.1:9"], 2, "--llamafactory-python"),
        (["lf.yaml", "--inventory", "no.json"], 2, "cannot be read"),
    ],
)
def test_exit_codes(shell: Any, file: Path, arguments: list[str], code: int, says: str) -> None:
    done = shell(VERB, *arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert not done.stdout
    assert file.read_text() == QWEN


def test_llamafactorys_way_stands_beside_ours(shell: Any, file: Path) -> None:
    (shell.root / "m").mkdir()
    (shell.root / "m" / "config.json").write_text('{"num_attention_heads": 32}')
    gpus = [
        {"index": n, "uuid": f"GPU-{n}", "name": "H100", "memory_total_bytes": 80 * 2**30} for n in range(6)
    ]
    (shell.root / "six.json").write_text(json.dumps({"gpus": gpus}))
    done = shell(VERB, str(file), "--inventory", "six.json", "--json", "-o", "x.toml")
    found = json.loads(done.stdout)
    theirs = found["llamafactory"]
    assert (theirs["replicas"], theirs["tensor_parallel_size"], theirs["problems"]) == (1, 6, [])
    assert found["plan"]["fits"]
    assert load_profile(found["profile"], "x.toml", "x").replicas is None
    local = shell(
        VERB, "lf.yaml", "model_name_or_path=m", "template=null", "--inventory", "six.json", "--json"
    )
    theirs = json.loads(local.stdout)["llamafactory"]
    assert theirs["problems"] == ["vLLM refuses: 32 attention heads do not divide by 6"]


@pytest.fixture
def engine(shell: Any) -> Iterator[str]:
    """The look-alike, which serves LlamaFactory's default name."""
    argv = [
        *shell.argv("sim-engine", "serve", "m", "--port", str(shell.port), "--served-model-name", "gpt-3.5-turbo"), "--load-s", "0",
    ]  # fmt: skip
    process = subprocess.Popen(
        argv, env=shell.env, cwd=shell.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{shell.port}"
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=10).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait(60)


def test_prompts_are_compared_with_a_running_engine(shell: Any, file: Path, engine: str) -> None:
    package = shell.root / "lf" / "llamafactory"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(LLAMAFACTORY)
    python = shell.root / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{shell.root}/lf:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    check = ("--check-template", engine, "--llamafactory-python", str(python))
    same = shell(VERB, str(file), "template=unheard_of", *check)
    assert same.returncode == 0, same.stderr
    assert same.stderr.count("same prompt (") == 5
    other = shell(VERB, str(file), "template=other", *check, "--json", "--accept-template-risk")
    assert other.returncode == 4, other.stderr
    found = json.loads(other.stdout)
    assert found["refusal"]["code"] == "template_mismatch"
    assert [one["same"] for one in found["prompts"]] == [True, False, True, False, True]
    differs = found["prompts"][1]
    assert differs["llamafactory_text"].startswith(".!<|end|>")
    assert differs["engine_text"].startswith(".<|end|>")
    plain = shell(VERB, str(file), "template=other", *check)
    assert "other prompt from token" in plain.stderr


def test_an_engine_or_llamafactory_that_does_not_answer_is_named(shell: Any, file: Path) -> None:
    broken = shell(
        VERB, str(file), "--check-template", "http://127.0.0.1:9", "--llamafactory-python", sys.executable
    )
    assert broken.returncode == 2
    assert "No module named 'llamafactory'" in broken.stderr


@pytest.fixture
def vllm(shell: Any) -> str:
    """An environment that looks like vLLM's: a real interpreter, the metadata, and a program that prints vLLM's help."""
    import venv

    root = shell.root / "venv"
    venv.create(root, with_pip=False, symlinks=True)
    site = next((root / "lib").glob("python3*")) / "site-packages"
    (site / "vllm-0.32.0.dist-info").mkdir()
    entry = site / "vllm" / "entrypoints" / "cli"
    entry.mkdir(parents=True)
    for package in (site / "vllm", site / "vllm" / "entrypoints", entry):
        (package / "__init__.py").touch()
    options = Path(__file__).parents[1] / "engines" / "data" / "vllm-0.32-options.txt"
    (entry / "main.py").write_text(f"print(open({str(options)!r}).read())\n")
    return str(root / "bin" / "python")


def test_flags_are_compared_with_the_installed_vllm(shell: Any, file: Path, vllm: str) -> None:
    fine = shell(VERB, str(file), "--python", vllm, "--json")
    assert fine.returncode == 0, fine.stderr
    assert json.loads(fine.stdout)["vllm_version"] == "0.32.0"
    file.write_text(
        QWEN + "vllm_config:\n  max_num_seqz: 4\n  kv_cache_dtype: fp9\n  disable_cascade_attn: true\n"
    )
    done = shell(VERB, str(file), "--python", vllm, "--json")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert (
        "lf.yaml:5:3: vllm_config.max_num_seqz: max_num_seqz: vLLM 0.32.0 has no flag"
        in found["refusal"]["message"]
    )
    assert "did you mean max_num_seqs?" in found["refusal"]["message"]
    assert "fp9 is none of them" in found["refusal"]["message"]
    assert any("v0.33.0" in warning["message"] for warning in found["warnings"])
    unknown = shell(VERB, str(file), "--python", sys.executable)
    assert (unknown.returncode, "no vLLM there" in unknown.stderr) == (2, True)
