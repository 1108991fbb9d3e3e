"""What becomes of the keys of a LlamaFactory inference file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuserved.api.errors import Invalid
from gpuserved.importers.llamafactory.draft import TEMPLATE_MISMATCH
from gpuserved.importers.llamafactory.keys import FOREIGN, KEYS, Fate

DATA = Path(__file__).with_name("data")
QWEN = "model_name_or_path: Qwen/Qwen3-4B-Instruct-2507\ntemplate: qwen3_nothink\ninfer_backend: vllm\n"
Import = Callable[..., Any]


def test_every_argument_of_llamafactory_has_a_fate() -> None:
    lines = (DATA / "llamafactory-arguments.txt").read_text().splitlines()[1:]
    arguments = {name for line in lines for name in line.split(": ")[1].split()}
    assert len(arguments) > 190
    assert not arguments - set(KEYS)
    assert not set(KEYS) & set(FOREIGN)
    assert all(key.reason for key in KEYS.values())


def outcome(imported: Import, text: str) -> Any:
    try:
        return imported(text)
    except Invalid as error:
        return error


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.dictionaries(
        st.sampled_from(sorted(KEYS)) | st.sampled_from(sorted(FOREIGN)) | st.from_regex(r"[a-z_]{3,12}", fullmatch=True),
        st.sampled_from([None, True, False, 1, 0.5, "auto", "x"]),
        max_size=6,
    )
)  # fmt: skip
def test_no_key_is_dropped_in_silence(imported: Import, keys: dict[str, Any]) -> None:
    """Each is accounted for, or the file is refused with the key's place."""
    import json

    text = QWEN + "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items() if key not in QWEN)
    done = outcome(imported, text)
    if isinstance(done, Invalid):
        said = done.message
        assert any(f": {key}" in said for key in keys), said
        return
    told = {part for note in done.draft.notes for part in note.key.split(", ")}
    silent = {key for key, value in keys.items() if key not in QWEN and key not in told}
    assert not {key for key in silent if keys[key] is not None}, silent
    if not done.refused:
        assert done.profile.model == "Qwen/Qwen3-4B-Instruct-2507"


def test_llamafactorys_defaults_are_made_explicit(imported: Import) -> None:
    profile = imported(QWEN).profile
    assert profile.max_model_len == 4096
    assert profile.flags["gpu_memory_utilization"] == 0.7
    assert profile.flags["override_generation_config"] == {
        "temperature": 0.95, "top_p": 0.7, "top_k": 50, "repetition_penalty": 1.0,
    }  # fmt: skip
    assert profile.served_name == "gpt-3.5-turbo"
    assert profile.tensor_parallel_size is None, "automatic: the planner chooses"
    assert "max_tokens" not in str(profile.flags)


def test_vllm_config_beats_every_named_key(imported: Import) -> None:
    done = imported(
        QWEN
        + "vllm_maxlen: 8192\nvllm_gpu_util: 0.5\nvllm_enforce_eager: true\ninfer_dtype: float16\nvllm_tensor_parallel_size: 8\n"
        + "vllm_config:\n  max_model_len: 16384\n  gpu-memory-utilization: 0.85\n  enforce_eager: false\n  dtype: bfloat16\n"
        + "  tensor_parallel_size: 2\n  max_num_seqs: 64\n  hf_overrides: {rope_scaling: {factor: 2.0}}\n  seed: null\n"
    )
    profile = done.profile
    assert (profile.max_model_len, profile.tensor_parallel_size) == (16384, 2)
    assert profile.flags["gpu_memory_utilization"] == 0.85
    assert profile.flags["enforce_eager"] is False
    assert profile.flags["dtype"] == "bfloat16"
    assert profile.flags["max_num_seqs"] == 64
    assert profile.flags["hf_overrides"] == {"rope_scaling": {"factor": 2.0}}
    assert "seed" not in profile.flags
    assert done.note("vllm_gpu_util").reason == "vllm_config.gpu-memory-utilization beats it"
    assert done.note("vllm_config.dtype").where.endswith("lf.yaml:13:3")
    assert "beats it" in done.note("vllm_tensor_parallel_size").reason


def test_vllm_config_may_be_json_text_and_overridden(imported: Import) -> None:
    profile = imported(QWEN + """vllm_config: '{"max_num_seqs": 8, "max_model_len": -1}'\n""").profile
    assert (profile.flags["max_num_seqs"], profile.max_model_len) == (8, None)
    profile = imported(
        QWEN + "vllm_config: {max_num_seqs: 8}\n", "vllm_config.max_num_seqs=16", "vllm_maxlen=1024"
    ).profile
    assert (profile.flags["max_num_seqs"], profile.max_model_len) == (16, 1024)


def test_sampling_of_vllm_config_has_no_say_over_what_llamafactory_sends_with_each_request(
    imported: Import,
) -> None:
    profile = imported(
        QWEN + "temperature: 0.2\nvllm_config: {override_generation_config: {temperature: 1.0, min_p: 0.1}}\n"
    ).profile
    assert profile.flags["override_generation_config"] == {
        "temperature": 0.2, "min_p": 0.1, "top_p": 0.7, "top_k": 50, "repetition_penalty": 1.0,
    }  # fmt: skip


def test_the_tensor_parallel_size_llamafactory_rejects_is_honoured_with_a_warning(imported: Import) -> None:
    done = imported(QWEN + "vllm_tensor_parallel_size: 2\n")
    assert done.profile.tensor_parallel_size == 2
    assert "LlamaFactory has no such key: it rejects the file" in done.warned["vllm_tensor_parallel_size"]


@pytest.mark.parametrize(
    ("line", "key", "says"),
    [
        ("learning_rate: 1e-4", "learning_rate", "a key of training"),
        ("tpyo: 1", "tpyo", "no key of LlamaFactory's"),
        ("vllm_maxlenn: 1", "vllm_maxlenn", "did you mean vllm_maxlen?"),
        ("resize_vocab: true", "resize_vocab", "export"),
        ("rope_scaling: linear", "rope_scaling", "hf_overrides"),
        ("quantization_bit: 4", "quantization_bit", "quantised"),
        ("stage: rm", "stage", "sft alone"),
        ("use_kt: true", "use_kt", "KTransformers"),
        ("adapter_folder: x", "adapter_folder", "adapter_name_or_path"),
        ("adapter_name_or_path: a,b", "adapter_name_or_path", "takes one"),
        ("adapter_name_or_path: a\nfinetuning_type: full", "finetuning_type", "lora alone"),
        ("vllm_config: {swap_space: 4}", "vllm_config.swap_space", "no such setting any more"),
        (
            "vllm_config: {pipeline_parallel_size: 2}",
            "vllm_config.pipeline_parallel_size",
            "tensor_parallel_size",
        ),
        ("vllm_config: {api_key: x}", "vllm_config.api_key", "keys_file"),
        ("infer_backend: ktransformers", "infer_backend", "fit on the GPUs"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_way_out(
    imported: Import, line: str, key: str, says: str
) -> None:
    text = QWEN.replace("infer_backend: vllm\n", "") if line.startswith("infer_backend") else QWEN
    done = imported(text + line + "\n")
    assert list(done.refused) == [key]
    assert says in done.refused[key]
    assert done.note(key).where


@pytest.mark.parametrize(
    "line",
    [
        "resize_vocab: false",
        "quantization_bit: null",
        "rope_scaling:",
        "add_tokens: ''",
        "learning_rate: null",
    ],
)
def test_what_is_switched_off_does_no_harm(imported: Import, line: str) -> None:
    done = imported(QWEN + line + "\n")
    assert not done.refused
    assert done.note(line.split(":", maxsplit=1)[0]).fate is Fate.UNUSED


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("vllm_maxlen: many", "lf.yaml:4:1: vllm_maxlen: expected a whole number of at least 1, got 'many'"),
        ("vllm_gpu_util: 7", "lf.yaml:4:1: vllm_gpu_util: expected a number from 0.01 to 1"),
        ("trust_remote_code: perhaps", "lf.yaml:4:1: trust_remote_code: expected true or false"),
        ("vllm_config: [1]", "lf.yaml:4:1: vllm_config: expected a mapping"),
        ("vllm_config: {max_model_len: long}", "vllm_config.max_model_len: expected a whole number"),
        ("vllm_config: '{'", "lf.yaml:4:1: vllm_config: not JSON"),
        ("infer_dtype: int3", "expected one of auto, float16"),
        ("hf_hub_token: 7\nvllm_maxlen: -1", "vllm_maxlen"),
    ],
)
def test_wrong_values_name_file_line_and_column(imported: Import, line: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        imported(QWEN + line + "\n")
    assert says in caught.value.message


def test_numbers_from_the_environment_count(imported: Import) -> None:
    profile = imported(
        QWEN + "vllm_maxlen: ${oc.env:LEN}\nvllm_gpu_util: ${oc.env:UTIL}\n",
        env={"LEN": "2048", "UTIL": "0.8"},
    ).profile
    assert (profile.max_model_len, profile.flags["gpu_memory_utilization"]) == (2048, 0.8)


def test_tokens_are_never_written(imported: Import) -> None:
    done = imported(QWEN + "hf_hub_token: hf_secret\nms_hub_token: ms_secret\n", env={"API_KEY": "sk-secret"})
    assert "hf_token_file" in done.warned["hf_hub_token"]
    assert "sha256sum" in done.warned["API_KEY"]
    assert "secret" not in done.text + str(done.draft.notes)


def test_the_servers_environment(imported: Import) -> None:
    env = {
        "API_MODEL_NAME": "support", "API_HOST": "127.0.0.1", "API_PORT": "9000", "USE_MODELSCOPE_HUB": "1",
        "CUDA_VISIBLE_DEVICES": "2,3", "FASTAPI_ROOT_PATH": "/llm", "MAX_CONCURRENT": "4",
    }  # fmt: skip
    done = imported(QWEN, env=env)
    assert done.profile.served_name == "support"
    assert done.profile.env == {"VLLM_USE_MODELSCOPE": "true"}
    assert done.profile.gpus == ("2", "3")
    assert done.note("API_PORT").becomes == "gpuserve up --listen 127.0.0.1:9000"
    assert {"FASTAPI_ROOT_PATH", "CUDA_VISIBLE_DEVICES"} <= set(done.warned)
    assert done.note("MAX_CONCURRENT").fate is Fate.UNUSED
    assert "USE_OPENMIND_HUB" in imported(QWEN, env={"USE_OPENMIND_HUB": "true"}).refused


def test_allow_extra_args_lets_unknown_keys_pass_as_llamafactory_does(imported: Import) -> None:
    done = imported(QWEN + "learning_rate: 1e-4\n", env={"ALLOW_EXTRA_ARGS": "1"})
    assert not done.refused
    assert "left out" in done.warned["learning_rate"]


def test_an_adapter_takes_the_name_that_clients_use(imported: Import, adapter: Callable[..., Path]) -> None:
    folder = adapter(r=20)
    profile = imported(QWEN + "adapter_name_or_path: saves/lora\n", served_name="support").profile
    assert profile.flags["lora_modules"] == [f"support={folder}"]
    assert profile.flags["enable_lora"] is True
    assert profile.flags["max_lora_rank"] == 32, (
        "20 is none of vLLM's ranks, and 32 is LlamaFactory's default"
    )
    assert profile.model_names == ("support", "support-base")
    adapter(r=40)
    assert imported(QWEN + "adapter_name_or_path: saves/lora\n").profile.flags["max_lora_rank"] == 64


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"r": 1024}, "ranks up to 512"),
    ],
)
def test_adapters_that_vllm_cannot_serve(
    imported: Import, adapter: Callable[..., Path], config: dict[str, Any], says: str
) -> None:
    adapter(**config)
    assert says in imported(QWEN + "adapter_name_or_path: saves/lora\n").refused["adapter_name_or_path"]


def test_a_folder_without_an_adapter_is_none(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "saves" / "lora").mkdir(parents=True)
    assert (
        "adapter_config.json"
        in imported(QWEN + "adapter_name_or_path: saves/lora\n").refused["adapter_name_or_path"]
    )


def test_an_adapter_of_another_model_is_told(imported: Import, adapter: Callable[..., Path]) -> None:
    adapter(base_model_name_or_path="Qwen/Qwen2.5-7B")
    assert (
        "trained on Qwen/Qwen2.5-7B"
        in imported(QWEN + "adapter_name_or_path: saves/lora\n").warned["adapter_name_or_path"]
    )


def test_relative_paths_are_relative_to_where_llamafactory_was_started(
    imported: Import, tmp_path: Path
) -> None:
    (tmp_path / "saves" / "full").mkdir(parents=True)
    (tmp_path / "saves" / "full" / "chat_template.jinja").write_text("{{ messages }}")
    text = "model_name_or_path: saves/full\ntemplate: qwen3_nothink\ninfer_backend: vllm\ncache_dir: cache\n"
    done = imported(text)
    assert done.profile.model == str(tmp_path / "saves" / "full")
    assert done.profile.flags["download_dir"] == str(tmp_path / "cache")
    assert "--check-template" in done.warned["template"]


def test_a_gptq_checkpoint_runs_in_float16(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert imported("model_name_or_path: m\ninfer_backend: vllm\n").profile.flags["dtype"] == "float16"


@pytest.mark.parametrize(
    ("model", "template", "says"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3", "knowledge date"),
        ("Qwen/Qwen2-7B-Instruct", "qwen", "created by Alibaba Cloud"),
        ("org/unheard-of", "chatml", "nothing is known"),
        ("org/unheard-of", "my_own", "ships no template"),
    ],
)
def test_other_prompts_stop_the_import_unless_accepted(
    imported: Import, model: str, template: str, says: str
) -> None:
    text = f"model_name_or_path: {model}\ntemplate: {template}\ninfer_backend: vllm\n"
    done = imported(text)
    assert says in done.refused["template"]
    assert done.note("template").code == TEMPLATE_MISMATCH
    accepted = imported(text, accept_template_risk=True)
    assert accepted.profile.model == model
    assert says in accepted.warned["template"]
    assert not imported(text, prompts_same=True).refused
    assert imported(text, prompts_same=False, accept_template_risk=True).refused


def test_a_default_system_prompt_stops_it_too(imported: Import, tmp_path: Path) -> None:
    text = QWEN + "default_system: Be brief.\n"
    assert "default_system" in imported(text).refused["template"]
    jinja = tmp_path / "mine.jinja"
    jinja.write_text("{{ messages }}")
    done = imported(text, chat_template=str(jinja))
    assert done.profile.flags["chat_template"] == str(jinja)
    with pytest.raises(Invalid):
        imported(text, chat_template=str(tmp_path / "missing.jinja"))


def test_the_chat_template_saved_with_an_adapter_is_used(
    imported: Import, adapter: Callable[..., Path]
) -> None:
    folder = adapter(base_model_name_or_path="org/m")
    text = (
        "model_name_or_path: org/m\ntemplate: chatml\ninfer_backend: vllm\nadapter_name_or_path: saves/lora\n"
    )
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert imported(text).draft.files == {"p.jinja": "{{ messages }}"}
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert imported(text).profile.flags["chat_template"] == str(folder / "chat_template.jinja")


def test_thinking_is_switched_off_for_templates_that_think(imported: Import) -> None:
    text = "model_name_or_path: Qwen/Qwen3-8B\ntemplate: qwen3\ninfer_backend: vllm\nenable_thinking: false\n"
    assert imported(text).profile.flags["default_chat_template_kwargs"] == {"enable_thinking": False}
    assert "default_chat_template_kwargs" not in imported(QWEN + "enable_thinking: false\n").profile.flags


def test_multimodal_templates_keep_llamafactorys_limits(imported: Import) -> None:
    done = imported(
        "model_name_or_path: Qwen/Qwen3-VL-4B-Instruct\ntemplate: qwen3_vl_nothink\ninfer_backend: vllm\n"
    )
    assert done.profile.flags["limit_mm_per_prompt"] == {"image": 4, "video": 2, "audio": 2}
    assert "more tokens" in done.warned["image_max_pixels"]


def test_a_tool_format_names_the_parser_to_add(imported: Import) -> None:
    assert 'tool_call_parser = "hermes"' in imported(QWEN + "tool_format: qwen\n").warned["tool_format"]


def test_nothing_in_the_file_can_leave_its_place_in_the_profile(imported: Import) -> None:
    """A value or reason with quotes, line breaks and control bytes stays a value, or a comment."""
    done = imported(
        QWEN + 'vllm_config: {tool_call_parser: "a\\"\\n[env]\\nX=1", x_y: "\\u0007"}\n', "tpyo=null"
    )
    assert done.profile.flags["tool_call_parser"] == 'a"\n[env]\nX=1'
    assert done.profile.env == {}


def test_a_file_without_a_template_is_warned_about(imported: Import) -> None:
    """LlamaFactory makes a template of its own from the checkpoint's, and repeats the beginning token before every turn."""
    done = imported("model_name_or_path: org/m\ninfer_backend: vllm\n")
    assert "derives" in done.warned["template"]
    assert "chat_template" not in done.profile.flags


def test_what_vllm_logs_is_left_alone(imported: Import) -> None:
    done = imported(QWEN + "vllm_config: {disable_log_stats: true, disable_log_requests: true}\n")
    assert "hung" in done.warned["vllm_config.disable_log_stats"]
    assert "logs no request" in done.warned["vllm_config.disable_log_requests"]
    assert not {"disable_log_stats", "disable_log_requests"} & set(done.profile.flags)


def test_llama_3_strips_the_ends_of_messages(imported: Import) -> None:
    done = imported(
        "model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct\ntemplate: llama3\ninfer_backend: vllm\n"
    )
    assert "at the ends of a message" in done.warned["template"]
    assert "template" not in imported(QWEN).warned
