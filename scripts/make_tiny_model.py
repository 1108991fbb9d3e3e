# ruff: noqa: INP001 - a program of its own, not part of a package
"""Make a tiny Llama-shaped model folder for `vllm serve FOLDER --load-format dummy`: config, tokenizer and chat template.

Usage: PYTHON_OF_THE_VLLM_ENVIRONMENT make_tiny_model.py FOLDER

There are no weights: vLLM draws random ones, so the answers are noise, but the server, its processes, its kernels and its
tokenizer are the real ones. Nothing is downloaded: the tokenizer is trained on the standard library's own sources.
Needs `tokenizers` and `transformers`, which every vLLM environment has; it runs with that environment's interpreter.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

CONTEXT_TOKENS = 4096
"""The model's own maximum; tests ask for less."""
VOCABULARY = 4096
SPECIAL = ("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Long prose docstrings and comments, in every CPython since 3.10.
CORPUS = (
    "argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "contextlib", "csv", "datetime", "decimal",
    "difflib", "doctest", "enum", "fractions", "functools", "glob", "gzip", "heapq", "inspect", "locale", "mailbox",
    "optparse", "pdb", "pickle", "platform", "plistlib", "pydoc", "random", "shelve", "statistics", "subprocess",
    "tarfile", "textwrap", "threading", "traceback", "typing", "uuid", "zipfile",
)  # fmt: skip


def model_config(vocabulary: int) -> dict[str, object]:
    """`config.json` of a two-layer Llama: the smallest shape whose head size (64) every attention backend accepts.

    :param vocabulary: rows of the embedding; at least the tokenizer's size.
    """
    heads, kv_heads, head_size = 4, 2, 64
    hidden = heads * head_size
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": SPECIAL.index("</s>"),
    }


def corpus() -> Iterator[str]:
    """The texts the tokenizer is trained on."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in CORPUS:
        for source in (library / f"{name}.py", library / name / "__init__.py"):
            if source.is_file():
                yield source.read_text("utf-8", errors="replace")


def train_tokenizer(folder: Path) -> int:
    """Train a byte-level BPE tokenizer and save it into `folder`.

    :returns: its number of tokens.
    """
    # Only the vLLM environment has these two.
    from tokenizers import (  # type: ignore[import-not-found]
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast  # type: ignore[import-not-found]

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    start, end = SPECIAL[:2]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=start, eos_token=end, model_max_length=CONTEXT_TOKENS
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(folder))
    return int(bpe.get_vocab_size())


def main(arguments: list[str]) -> int:
    """Write the folder. Exit codes: 0 done, 2 usage."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write((__doc__ or "").strip() + "\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    tokens = train_tokenizer(folder)
    config = json.dumps(model_config(max(tokens, VOCABULARY)), indent=2) + "\n"
    (folder / "config.json").write_text(config, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
