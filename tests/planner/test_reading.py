"""A configuration read into facts: nested parts, older names, lengths, quantisation, and what the files' bytes become."""

from __future__ import annotations

from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.planner import architecture
from gpuserved.core.planner.architecture import Files, integer, kind_of, text_part
from gpuserved.core.planner.model import ModelFacts, Unknown

SIZE = 16_060_522_496


def read(size: Any = SIZE, *, head: Any = False, dtype: Any = None, **more: Any) -> ModelFacts:
    files = None if size is None else Files(size, "index", head)
    found = architecture.read(configs.llama(**more), files, "a-model", dtype=dtype)
    assert isinstance(found, ModelFacts), found
    return found


def unknown(config: dict[str, Any], files: Files | None = None) -> Unknown:
    found = architecture.read(config, files, "a")
    assert isinstance(found, Unknown), found
    return found


def test_the_facts_of_a_plain_model() -> None:
    found = read()
    assert found.identity == "a-model"
    assert (found.architecture, found.attention_heads, found.kv_heads) == ("LlamaForCausalLM", 32, 8)
    assert (found.hidden_size, found.vocab_size, found.intermediate_size) == (4096, 128_256, 14_336)
    assert (found.experts, found.dtype_bytes, found.quantization, found.multimodal) == (0, 2, None, False)
    assert found.divisible == (("intermediate_size", 14_336),)
    assert (found.weights.total_bytes, found.weights.source, found.notes) == (SIZE, "index", ())
    assert found.weights.replicated_bytes == 2 * (32 * 2 * 4096 + 4096)
    assert read(None).weights.source == "config"
    assert read(None).weights.replicated_bytes == found.weights.replicated_bytes


@pytest.mark.parametrize("name", ["text_config", "llm_config", "language_config"])
def test_the_language_model_of_one_that_sees(name: str) -> None:
    inner = configs.llama(hidden_size=2048)
    outer = {"model_type": "llava", "vision_config": {}, "hidden_size": 99, "bos_token_id": 7, name: inner}
    assert text_part(outer)["hidden_size"] == 2048
    assert text_part(outer)["bos_token_id"] == 7, "keys around it count where it has none"
    assert text_part({"hidden_size": 1, name: "elsewhere"})["hidden_size"] == 1
    omni = {"thinker_config": {name: inner}, "hidden_size": 3}
    assert text_part(omni)["hidden_size"] == 2048
    assert text_part({"thinker_config": 5, "hidden_size": 3})["hidden_size"] == 3
    assert text_part({"thinker_config": {"hidden_size": 4}, name: inner})["hidden_size"] == 2048


@pytest.mark.parametrize("key", ["vision_config", "audio_config", "thinker_config"])
def test_what_sees_or_hears_is_said(key: str) -> None:
    assert read(**{key: None}).multimodal


def test_the_name_of_the_architecture() -> None:
    assert read(architectures=["A", "B"]).architecture == "A"
    assert read(architectures=[]).architecture == "llama"
    assert read(architectures=None).architecture == "llama"
    nested = {"text_config": configs.llama("Inner"), "model_type": "mistral3"}
    found = architecture.read(nested, Files(SIZE, "index"), "a")
    assert isinstance(found, ModelFacts)
    assert found.architecture == "Inner"
    assert kind_of({"model_type": "qwen3"}) == "qwen3"
    assert kind_of({}) == ""


def test_the_type_of_what_is_around_counts_where_the_text_has_none() -> None:
    text = configs.llama()
    del text["model_type"]
    assert isinstance(
        architecture.read({"model_type": "llama", "text_config": text}, Files(SIZE, "index"), "a"), ModelFacts
    )
    assert "model type ''" in unknown(text).message


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("num_attention_heads", ("n_head", "n_heads", "num_heads")), ("hidden_size", ("n_embd", "d_model")),
        ("intermediate_size", ("ffn_dim", "n_inner")),
    ],
)  # fmt: skip
def test_older_names(key: str, names: tuple[str, ...]) -> None:
    for name in names:
        config = configs.llama(model_type="opt")
        config[name] = config.pop(key)
        found = architecture.read(config, Files(SIZE, "index"), "a")
        assert isinstance(found, ModelFacts)
        assert (found.attention_heads, found.hidden_size, found.intermediate_size) == (32, 4096, 14_336)


def test_a_width_that_is_not_written_is_four_times_the_hidden_size() -> None:
    assert read(model_type="opt", intermediate_size=None).intermediate_size == 4 * 4096


@pytest.mark.parametrize("key", ["n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"])
def test_experts_under_their_names(key: str) -> None:
    found = read(model_type="mixtral", moe_intermediate_size=768, **{key: 64})
    assert found.experts == 64
    assert found.divisible == (("moe_intermediate_size", 768),)


def test_blocks_of_a_quantisation_limit_the_sizes() -> None:
    def divisible(**more: Any) -> tuple[tuple[str, int], ...]:
        return read(**more).divisible

    blocked = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert divisible(quantization_config=blocked) == (("intermediate_size in blocks of 128", 112),)
    assert divisible(quantization_config=blocked, intermediate_size=64) == (
        ("intermediate_size in blocks of 128", 1),
    )
    one = blocked | {"weight_block_size": [1, 1]}
    assert divisible(quantization_config=one) == (("intermediate_size in blocks of 1", 14_336),)
    for odd in ([], None, ["x"], [0, 0], 128):
        assert divisible(quantization_config=blocked | {"weight_block_size": odd}) == (
            ("intermediate_size", 14_336),
        )
    assert configs.facts(configs.GPT_OSS_20B, 10**10).divisible == (), "its kernels pad"


@pytest.mark.parametrize(
    ("more", "length"),
    [
        ({}, 131_072),
        ({"n_positions": 1024}, 1024), ({"max_seq_len": 1025}, 1025), ({"seq_length": 1026}, 1026),
        ({"max_sequence_length": 1027}, 1027), ({"max_seq_length": 1028}, 1028), ({"seq_len": 1029}, 1029),
        ({"n_positions": 200_000}, 131_072),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": "long"}, None),
        ({"model_max_length": 5000}, 5000),
        ({"model_max_length": 1e30}, 131_072),
    ],
)  # fmt: skip
def test_the_smallest_length_counts(more: dict[str, Any], length: int | None) -> None:
    assert read(**more).max_length == length


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("named", ["rope_type", "type"])
@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        ({"kind": "linear", "factor": 2}, 8192),
        ({"kind": "dynamic", "factor": 1.5}, 6144),
        ({"kind": "yarn", "factor": 2, "original_max_position_embeddings": 2048}, 4096),
        ({"kind": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048}, 16_384),
        ({"kind": "yarn", "factor": 2}, 4096),
        ({"kind": "llama3", "factor": 8, "original_max_position_embeddings": 2048}, 4096),
        ({"kind": "linear", "factor": "2"}, 4096),
        ({"kind": "linear"}, 4096),
    ],
)
def test_a_stretched_context(key: str, named: str, scaling: dict[str, Any], length: int) -> None:
    written = {named if name == "kind" else name: value for name, value in scaling.items()}
    assert read(max_position_embeddings=4096, **{key: written}).max_length == length
    assert read(max_position_embeddings=4096, **{key: "linear"}).max_length == 4096
    assert read(max_position_embeddings=None, **{key: written}).max_length is None


def test_how_it_is_quantised() -> None:
    assert read(quantization_config={"quant_method": "awq"}).quantization == "awq"
    assert read(quantization_config={"bits": 4}).quantization == "unnamed"
    assert read(quantization_config="awq").quantization is None
    nested = {"text_config": configs.llama(), "quantization_config": {"quant_method": "fp8"}}
    found = architecture.read(nested, Files(SIZE, "index"), "a")
    assert isinstance(found, ModelFacts)
    assert found.quantization == "fp8"


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 4), ("float", 4), ("bfloat16", 2), ("auto", 2), (None, 2)]
)
def test_bytes_of_a_number(dtype: str | None, size: int) -> None:
    assert read(dtype=dtype).dtype_bytes == size
    assert read(None, dtype=dtype).weights.total_bytes == size * 8_030_261_248


def test_files_in_32_bits_are_halved_where_they_are_loaded_as_16() -> None:
    wide: dict[str, Any] = {"torch_dtype": "float32"}
    assert read(2 * SIZE, **wide).weights.total_bytes == SIZE
    assert read(2 * SIZE, dtype="float32", **wide).weights.total_bytes == 2 * SIZE
    quantised = wide | {"quantization_config": {"quant_method": "awq"}}
    assert read(2 * SIZE, **quantised).weights.total_bytes == 2 * SIZE


def test_an_output_layer_that_is_stored_twice_is_loaded_once() -> None:
    once = SIZE - 128_256 * 4096 * 2
    assert read(head=True, tie_word_embeddings=True).weights.total_bytes == once
    assert read(head=True, tie_word_embeddings=False).weights.total_bytes == SIZE
    assert read(tie_word_embeddings=True).weights.total_bytes == SIZE
    untold = configs.llama()
    del untold["tie_word_embeddings"]
    found = architecture.read(untold, Files(SIZE, "index", has_lm_head=True), "a")
    assert isinstance(found, ModelFacts)
    assert found.weights.total_bytes == SIZE


def test_experts_in_four_bits_are_padded_and_the_rest_is_in_sixteen() -> None:
    size = 13_761_300_984
    found = configs.facts(configs.GPT_OSS_20B, size)
    layer = (
        2880 * (2 * 64 * 64 + 2 * 8 * 64) + 64 * 64 + 2 * 8 * 64 + 2 * 2880
    )  # attention with its biases, norms
    plain = 2 * (2 * 201_088 * 2880 + 24 * (layer + 2880 * 32) + 2880)
    assert found.weights.total_bytes - found.weights.expert_bytes == plain
    assert found.weights.expert_bytes == (size - plain) * 3072 // 2880
    named = configs.GPT_OSS_20B | {"quantization_config": {"quant_method": "gpt_oss_mxfp4"}}
    assert configs.facts(named, size).weights == found.weights
    assert configs.facts(configs.GPT_OSS_20B, plain - 1).weights.expert_bytes == 0


def test_experts_are_their_share_of_the_files() -> None:
    whole = configs.facts(configs.QWEN3_30B_A3B)
    half = configs.facts(configs.QWEN3_30B_A3B, whole.weights.total_bytes // 2)
    assert half.weights.expert_bytes == pytest.approx(whole.weights.expert_bytes / 2, rel=1e-6)
    assert half.weights.replicated_bytes == whole.weights.replicated_bytes
    tiny = configs.facts(configs.QWEN3_30B_A3B, whole.weights.replicated_bytes)
    assert tiny.weights.replicated_bytes == 0, "files smaller than that are something else"


def test_what_is_missing_or_wrong_is_named() -> None:
    files = Files(SIZE, "index")
    assert unknown(configs.llama(vocab_size=None), files).message == (
        "LlamaForCausalLM: its config.json lacks or misstates 'vocab_size'; its memory cannot be planned"
    )
    assert unknown({}).message.startswith("the model: model type ''")
    assert unknown({"architectures": "Text", "model_type": "novel"}).message.startswith("novel: ")
    assert "--max-model-len auto" in unknown({}).hint
    awq = configs.llama(quantization_config={"quant_method": "awq"})
    assert "no weights beside its config.json" in unknown(awq).message
    assert "no weights beside its config.json" in unknown(configs.llama(model_type="opt")).message


@pytest.mark.parametrize(
    ("table", "value"),
    [
        ({"a": 5}, 5),
        ({"a": 0}, 0),
        ({"a": 5.9}, 5),
        ({"b": 6}, 6),
        ({"a": None, "b": 6}, 6),
        ({"a": 4, "b": 6}, 4),
        ({}, 9),
    ],
)
def test_the_first_key_that_is_set(table: dict[str, Any], value: int) -> None:
    assert integer(table, "a", "b", default=9) == value


@pytest.mark.parametrize("value", [True, False, "5", -1, -0.5, [1]])
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(TypeError, match="a"):
        integer({"a": value}, "a", default=9)


def test_no_key_and_no_default() -> None:
    with pytest.raises(KeyError, match="a"):
        integer({"c": 1}, "a", "b")
