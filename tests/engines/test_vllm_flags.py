import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli
from jsonschema import Draft7Validator

from gpuserved.api.errors import Invalid
from gpuserved.config.document import placed
from gpuserved.config.profile import load_profile
from gpuserved.config.schema import profile_schema, with_flags
from gpuserved.core.profile import EngineName
from gpuserved.engines.vllm.flags import (
    arguments,
    cached,
    check,
    ensure_flag_table,
)
from gpuserved.engines.vllm.help import SWITCH, TOGGLE, VALUE, VALUES, FlagTable, parse_help
from gpuserved.engines.vllm.renamed import RENAMED
from gpuserved.engines.vllm.schema import flag_schemas


@pytest.fixture
def table(vllm_options: str) -> FlagTable:
    return parse_help(vllm_options, "0.32.0")


def test_the_help_of_real_vllm_becomes_a_table(table: FlagTable) -> None:
    assert len(table.kinds) > 300
    assert table.kinds["enforce-eager"] == TOGGLE
    assert table.kinds["gpu-memory-utilization"] == VALUE
    assert table.kinds["device-memory-utilization"] == VALUE  # an alias
    assert table.kinds["allowed-media-domains"] == VALUES
    assert table.kinds["disable-log-stats"] == SWITCH
    assert "no-enforce-eager" not in table.kinds


def test_flags_the_adapter_itself_uses_exist(table: FlagTable) -> None:
    ours = {
        "uds", "served-model-name", "max-model-len", "tensor-parallel-size", "shutdown-timeout", "allowed-media-domains",
        "disable-uvicorn-access-log",
    }  # fmt: skip
    assert ours <= set(table.kinds)


def test_an_unknown_flag_is_refused_with_the_nearest_one(table: FlagTable) -> None:
    with pytest.raises(Invalid) as caught:
        check({"gpu_memory_utilisation": 0.9}, table, "llama")
    assert "llama: [vllm] gpu_memory_utilisation" in caught.value.message
    assert "did you mean gpu_memory_utilization?" in caught.value.message


def test_abbreviations_are_not_taken(table: FlagTable) -> None:
    with pytest.raises(Invalid):
        check({"gpu_memory_util": 0.9}, table, "llama")


@pytest.mark.parametrize(
    "key", ["uds", "host", "port", "served_model_name", "served-model-name", "api_key", "max_model_len"]
)
def test_what_the_daemon_decides_cannot_be_set(table: FlagTable, key: str) -> None:
    with pytest.raises(Invalid) as caught:
        check({key: "x"}, table, "llama")
    assert caught.value.hint


def test_types_that_cannot_be_right_are_refused(table: FlagTable) -> None:
    with pytest.raises(Invalid):
        check({"enforce_eager": 1}, table, "llama")
    with pytest.raises(Invalid):
        check({"block_size": True}, table, "llama")
    check({"enforce_eager": False, "block_size": 16}, table, "llama")


def test_values_become_words(table: FlagTable) -> None:
    words = arguments(
        {
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "gpu_memory_utilization": 0.85,
            "hf_overrides": {"rope": {"factor": 2.0}},
            "allowed_media_domains": ["a.example", "b.example"],
            "dtype": "bfloat16",
        },
        table,
    )
    assert words == [
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--gpu-memory-utilization=0.85",
        '--hf-overrides={"rope":{"factor":2.0}}',
        "--allowed-media-domains",
        "a.example",
        "b.example",
        "--dtype=bfloat16",
    ]


def test_a_value_cannot_smuggle_in_a_flag(table: FlagTable) -> None:
    assert arguments({"dtype": "--trust-remote-code"}, table) == ["--dtype=--trust-remote-code"]


async def test_the_table_is_asked_for_once(
    vllm_environment: Callable[..., str], vllm_options: str, folder: Path
) -> None:
    python = vllm_environment(help_text=vllm_options)
    cache = folder / "cache"
    assert cached(python, cache) is None
    first = await ensure_flag_table(python, cache)
    assert first is not None
    assert first.version == "0.32.0"
    assert await ensure_flag_table(python, cache) == first == cached(python, cache)
    asked = next((folder / "venv").glob("lib/python3*/site-packages/asked"))
    assert asked.read_text() == "x"


async def test_a_vllm_that_prints_no_help_leaves_no_table(
    vllm_environment: Callable[..., str], folder: Path
) -> None:
    python = vllm_environment(help_text="Traceback: broken install\n")
    assert await ensure_flag_table(python, folder / "cache") is None
    assert cached(python, folder / "cache") is None


async def test_a_broken_cache_file_is_made_anew(
    vllm_environment: Callable[..., str], vllm_options: str, folder: Path
) -> None:
    python = vllm_environment(help_text=vllm_options)
    cache = folder / "cache"
    await ensure_flag_table(python, cache)
    stored = next((cache / "vllm-flags").iterdir())
    stored.write_text("[1, 2")
    assert cached(python, cache) is None
    again = await asyncio.wait_for(ensure_flag_table(python, cache), 30)
    assert again is not None


def test_choices_numbers_and_endings_are_read_from_the_help(table: FlagTable) -> None:
    assert table.choices["dtype"] == ["auto", "bfloat16", "float", "float16", "float32", "half"]
    assert "tokenizer-mode" not in table.choices, "its list in brackets is open: vLLM takes other words too"
    assert {"seed", "max-num-seqs", "gpu-memory-utilization", "device-memory-utilization"} <= set(
        table.numbers
    )
    assert set(table.deprecated) == {"log-config-file", "disable-cascade-attn"}


@pytest.mark.parametrize(
    ("key", "value", "says", "hint"),
    [
        ("dtype", "bfloat61", "takes auto, bfloat16", "did you mean bfloat16?"),
        ("max_lora_rank", 20, "20 is none of them", None),
        ("seed", "abc", "is a number, not 'abc'", None),
        ("seed", [1], "takes one value", None),
        ("gpu_memory_utilization", 90, "a fraction of the GPU's memory", None),
        ("gpu_memory_utilization", "high", "is a number", None),
        ("block_size", False, "needs a value, false is none", "leave it out"),
        ("enforce_eager", "true", "is true or false", None),
        ("swap_space", 4, "has no flag --swap-space any more", "kv_offloading_size"),
        ("guided_decoding_backend", "xgrammar", "any more", "structured_outputs_config"),
    ],
)
def test_values_that_vllm_refuses_are_refused_before_a_start(
    table: FlagTable, key: str, value: object, says: str, hint: str | None
) -> None:
    with pytest.raises(Invalid) as caught:
        check({key: value}, table, "llama")  # type: ignore[dict-item]
    assert caught.value.message.startswith(f"llama: [vllm] {key}")
    assert says in caught.value.message
    assert (hint or "") in (caught.value.hint or "")


def test_values_that_vllm_takes_are_taken(table: FlagTable) -> None:
    taken = {
        "dtype": "half", "max_lora_rank": 16, "seed": 7, "max_num_batched_tokens": "8k", "tokenizer_mode": "anything",
        "gpu_memory_utilization": 0.9, "hf_overrides": {"a": 1}, "lora_modules": ["a=/x"], "kv_cache_dtype": "fp8",
    }  # fmt: skip
    assert check(taken, table, "llama") == []  # type: ignore[arg-type]


def test_flags_on_their_way_out_are_warned_about(table: FlagTable) -> None:
    (warning,) = check({"disable_cascade_attn": True}, table, "llama")
    assert "will be removed in v0.33.0" in warning


def test_without_a_table_only_what_no_version_takes_is_refused() -> None:
    check({"some_new_flag": 1}, None, "llama")
    with pytest.raises(Invalid) as caught:
        check({"disable_log_requests": True}, None, "llama")
    assert "no supported vLLM has a flag --disable-log-requests any more" in caught.value.message


def test_the_table_of_renamed_flags_agrees_with_the_real_ones(table: FlagTable) -> None:
    for name, renamed in RENAMED.items():
        assert (name.replace("_", "-") in table.kinds) == renamed.still_taken, name
        assert renamed.becomes is None or renamed.becomes.replace("_", "-") in table.kinds


async def test_a_table_of_an_older_release_is_made_anew(
    vllm_environment: Callable[..., str], vllm_options: str, folder: Path
) -> None:
    python = vllm_environment(help_text=vllm_options)
    cache = folder / "cache"
    await ensure_flag_table(python, cache)
    stored = next((cache / "vllm-flags").iterdir())
    stored.write_text('{"version": "0.32.0", "kinds": {"uds": "value"}}')
    assert cached(python, cache) is None
    again = await ensure_flag_table(python, cache)
    assert again is not None
    assert again.choices


def test_an_editor_knows_the_flags_of_the_installed_vllm(table: FlagTable) -> None:
    schema = Draft7Validator(with_flags(profile_schema(), EngineName.VLLM, flag_schemas(table)))

    def fine(flags: str) -> bool:
        return not list(schema.iter_errors(tomli.loads(f'model = "m"\n[vllm]\n{flags}')))

    for flags in (
        'dtype = "half"', "gpu-memory-utilization = 0.9", "gpu_memory_utilization = 0.9", "max_lora_rank = 16", "enforce_eager = true",
        'max_num_batched_tokens = "8k"', 'lora_modules = ["a=/x"]', "hf_overrides = { a = 1 }", "max_model_len = 4096",
    ):  # fmt: skip
        assert fine(flags), flags
    for flags in (
        'dtype = "bf"',
        "max_lora_rank = 20",
        "enforce_eager = 1",
        "gpu_memory_utilisation = 0.9",
        "port = 1",
        "seed = true",
    ):
        assert not fine(flags), flags


@pytest.mark.parametrize(("written", "line"), [("gpu_memory_utilisation", 5), ("gpu-memory-utilisation", 5)])
def test_a_refused_flag_is_found_in_its_file(table: FlagTable, written: str, line: int) -> None:
    text = f'model = "m"\n[limits]\nqueue = 1\n[vllm]\n{written} = 0.9\n'
    profile = load_profile(text, "/p/m.toml", "m")
    with pytest.raises(Invalid) as caught:
        check(profile.flags, table, profile.name)
    found = placed(caught.value, text, "/p/m.toml")
    assert found.message.startswith(
        f"/p/m.toml:{line}: [vllm] gpu_memory_utilisation: vLLM 0.32.0 has no flag"
    )
    assert (found.detail or {})["line"] == line
    assert placed(caught.value, "", "/p/m.toml").message == caught.value.message
