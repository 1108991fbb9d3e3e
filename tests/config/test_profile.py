from __future__ import annotations

from pathlib import Path

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.config.profile import load_profile
from gpuserved.core.profile import EngineName, Policy, Routing

GOOD = 'model = "org/name"\n'
WHOLE = """
model = "meta-llama/Llama-3.1-8B-Instruct"
served_name = "llama-8b"
engine = "vllm"
python = "/opt/vllm/bin/python"
replicas = "auto"
tensor_parallel_size = 2
data_parallel = "replicas"
max_model_len = 8192
target_concurrency = 32
gpus = [0, "GPU-abc"]
policy = "session"
[routing]
weight = 2
session_header = "X-Chat"
[vllm]
gpu-memory-utilization = 0.9
enable_prefix_caching = true
[limits]
queue = 5
drain_s = 60
[restart]
budget = 5
[health]
hang_timeout_s = 240
[env]
OMP_NUM_THREADS = "4"
"""


def test_a_whole_profile_is_read_with_its_types() -> None:
    profile = load_profile(WHOLE, "llama.toml", "llama")
    assert (profile.engine, profile.replicas, profile.tensor_parallel_size) == (EngineName.VLLM, None, 2)
    assert profile.gpus == ("0", "GPU-abc")
    assert profile.policy is Policy.SESSION
    assert profile.routing == Routing(weight=2.0, session_header="x-chat")
    assert profile.flags == {"gpu_memory_utilization": 0.9, "enable_prefix_caching": True}
    assert (profile.limits.queue, profile.limits.drain_s, profile.limits.term_grace_s) == (5, 60.0, 10.0)
    assert profile.health.hang_timeout_s == 240.0
    assert profile.env == {"OMP_NUM_THREADS": "4"}


def test_a_profile_that_says_only_the_model_is_whole() -> None:
    profile = load_profile(GOOD, "p.toml", "p")
    assert (profile.served_name, profile.gpus, profile.max_model_len) == ("org/name", None, None)


def test_a_path_is_never_the_served_name() -> None:
    assert load_profile('model = "/srv/models/secret-project"\n', "p.toml", "p").served_name == "p"


def test_a_relative_model_is_beside_its_profile() -> None:
    assert (
        load_profile('model = "./m"\n', "/etc/gpuserve/profiles/p.toml", "p").model
        == "/etc/gpuserve/profiles/m"
    )


def test_what_only_the_vllm_table_says_counts_as_the_profiles_own() -> None:
    profile = load_profile(GOOD + "[vllm]\nmax-model-len = 4096\nserved_model_name = 'x'\n", "p.toml", "p")
    assert (profile.max_model_len, profile.served_name, profile.flags) == (4096, "x", {})


@pytest.mark.parametrize(
    ("text", "where", "says", "hint"),
    [
        (GOOD + "max_modl_len = 3\n", "p.toml:2", "max_modl_len: unknown key", "did you mean max_model_len?"),
        (GOOD + "\n[limits]\n# note\nqueu = 3\n", "p.toml:5", "limits.queu: unknown key", "did you mean queue?"),
        (GOOD + "[limit]\nqueue = 3\n", "p.toml:2", "limit: unknown key", "did you mean limits?"),
        (GOOD + 'max_model_len = "8192"\n', "p.toml:2", "expected a whole number from 1", None),
        (GOOD + "replicas = true\n", "p.toml:2", "got the boolean true", None),
        (GOOD + "replicas = 1.0\n", "p.toml:2", "replicas: expected a whole number", None),
        (GOOD + "replicas = -1\n", "p.toml:2", "from 0 to 1024", None),
        (GOOD + "[restart]\njitter = 1.5\n", "p.toml:3", "restart.jitter: expected a number from 0 to 1", None),
        (GOOD + "[limits]\ndrain_s = nan\n", "p.toml:3", "limits.drain_s: expected a number", None),
        (GOOD + "limits = 3\n", "p.toml:2", "limits: expected a table", None),
        ("model = \n", "p.toml:1:9", "not valid TOML", None),
        ('model = "a/b"\nmodel = "a/c"\n', "p.toml:2", "set twice", None),
        (GOOD + 'gpus = "all\n', "p.toml:2", "not valid TOML", None),
        (GOOD + "max_model_len = 1\n[vllm]\nmax-model-len = 2\n", "p.toml:4", "set twice", "keep the one at the top"),
        (GOOD + "[vllm]\na-b = 1\na_b = 2\n", "p.toml", "set twice", "keep one"),
        (GOOD + "[vllm]\nmax_model_len = '9'\n", "p.toml:3", "vllm.max_model_len: expected a whole number", None),
        (GOOD + "[sim]\ngpus = 8\n", "p.toml:2", 'for engine = "sim"', None),
        (GOOD + 'engine = "sglang"\n', "p.toml:2", 'one of "vllm", "llamacpp", "command", "sim"', None),
        (GOOD + 'policy = "sesion"\n', "p.toml:2", 'one of "least_inflight"', None),
        (GOOD + "[routing]\nwieght = 2\n", "p.toml:3", "routing.wieght: unknown key", "did you mean weight?"),
        (GOOD + "[routing]\nweight = 0\n", "p.toml:3", "from 0.01 to 100", None),
        (GOOD + "[routing]\nload_factor = 0.9\n", "p.toml:3", "from 1 to 100", None),
        (GOOD + "[routing]\nsession_header = 'a b'\n", "p.toml:3", "the name of a header", None),
        (GOOD + 'data_parallel = "internal"\nengine = "sim"\n', "p.toml:2", "another engine", None),
        (GOOD + 'data_parallel = "both"\n', "p.toml:2", 'one of "replicas", "internal"', None),
        (GOOD + "gpu_share = 2\n", "p.toml:2", "from 0.01 to 1", None),
        (GOOD + "gpu_share = 0.5\n[vllm]\ngpu_memory_utilization = 0.9\n", "p.toml:4", "above gpu_share", None),
        (GOOD + "gpus = [0, 0]\n", "p.toml:2", "named twice", None),
        (GOOD + "gpus = [-1]\n", "p.toml:2", "list of indexes and UUIDs", None),
        (GOOD + "[env]\n'A B' = 'x'\n", "p.toml:3", "environment variable", None),
        (GOOD + 'engine = "command"\n', "p.toml", "needs a [command] table", "argv"),
        (GOOD + 'engine = "command"\n[command]\nargv = "run"\n', "p.toml:4", "a list of strings", None),
        (GOOD + 'engine = "command"\n[command]\nargv = []\n', "p.toml:4", "at least 1", None),
        (GOOD + "[health]\nhang_timeout_s = 5\n", "p.toml:3", "below hang_rotation_s", None),
        ("served_name = 'x'\n", "p.toml", "model is missing", "org/name"),
        (GOOD + 'served_name = "a b"\n', "p.toml:2", "without blanks", None),
    ],
)  # fmt: skip
def test_errors_name_file_line_key_and_what_was_expected(
    text: str, where: str, says: str, hint: str | None
) -> None:
    with pytest.raises(Invalid) as refused:
        load_profile(text, "p.toml", "p")
    assert refused.value.message.startswith(f"{where}:")
    assert says in refused.value.message
    if hint:
        assert hint in (refused.value.hint or "")


def test_lines_inside_a_text_block_are_not_taken_for_keys() -> None:
    text = GOOD + '[vllm]\nchat_template = """\nqueue = 1\n[limits]\n"""\n[limits]\nqueue = "x"\n'
    with pytest.raises(Invalid, match=r"p\.toml:8: limits\.queue"):
        load_profile(text, "p.toml", "p")


@pytest.mark.parametrize("table", ["[env]\nHF_TOKEN = 12345678\n", "[vllm]\napi_key = 1979-05-27\n"])
def test_a_value_that_may_be_a_secret_is_not_repeated(table: str) -> None:
    with pytest.raises(Invalid) as refused:
        load_profile(GOOD + table, "p.toml", "p")
    shown = f"{refused.value.message} {refused.value.hint} {refused.value.detail}"
    assert "12345678" not in shown
    assert "1979" not in shown


@pytest.mark.parametrize("name", ["", "Demo", "-x", "a/b", "..", "a b", "x" * 64])
def test_names_that_cannot_be_file_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="cannot be a profile's name"):
        load_profile(GOOD, "p.toml", name)


def test_the_shipped_profiles_are_good() -> None:
    folder = Path(__file__).resolve().parents[2] / "profiles"
    names = {path.stem for path in folder.glob("*.toml")}
    assert {"demo", "sim-8gpu"} <= names
    for name in names:
        path = folder / f"{name}.toml"
        assert load_profile(path.read_text("utf-8"), str(path), name).name == name
