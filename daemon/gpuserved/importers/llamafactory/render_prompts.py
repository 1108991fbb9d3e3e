"""A program for LlamaFactory's own environment: prompts as its api would send them to vLLM, as token ids.

Reads `{"arguments": {...}, "conversations": [[{role, content}, ...], ...]}` on stdin, writes one line
`gpuserve-prompts [[ids], ...]`. It imports LlamaFactory and nothing of ours.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def main() -> None:
    """Render every conversation."""
    request = json.load(sys.stdin)
    parser: Any = importlib.import_module("llamafactory.hparams")
    loader: Any = importlib.import_module("llamafactory.model")
    templates: Any = importlib.import_module("llamafactory.data")
    model_args, data_args, _, _ = parser.get_infer_args(
        {**request["arguments"], "infer_backend": "huggingface"}
    )
    tokenizer = loader.load_tokenizer(model_args)["tokenizer"]
    template = templates.get_template_and_fix_tokenizer(tokenizer, data_args)
    rendered = []
    for conversation in request["conversations"]:
        system = next((one["content"] for one in conversation if one["role"] == "system"), None)
        turns = [one for one in conversation if one["role"] != "system"]
        ids, _ = template.encode_oneturn(
            tokenizer, [*turns, {"role": "assistant", "content": ""}], system, None
        )
        rendered.append([int(one) for one in ids])
    sys.stdout.write("gpuserve-prompts " + json.dumps(rendered) + "\n")


if __name__ == "__main__":
    main()
