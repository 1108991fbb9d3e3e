"""The profile's text: what the operator will read and edit."""

from __future__ import annotations

import os
import textwrap

import gpuserved
from gpuserved.config.write import line
from gpuserved.importers.llamafactory.draft import Draft
from gpuserved.importers.llamafactory.keys import Fate

_ORDER = (
    "model",
    "served_name",
    "engine",
    "python",
    "replicas",
    "tensor_parallel_size",
    "max_model_len",
    "gpus",
)
_COLUMNS = 118


def render(draft: Draft) -> str:
    """The whole file, with what deserves attention above and beside it."""
    request = draft.request
    top = {
        **draft.top, "engine": "vllm", "replicas": "auto", **({"python": request.python} if request.python else {}),
    }  # fmt: skip
    lines = [*_head(draft), ""]
    lines += [line(key, top[key], draft.comments.get(key)) for key in _ORDER if key in top]
    lines += ["", "[vllm]"]
    lines += [line(key, value, draft.comments.get(f"vllm.{key}")) for key, value in draft.flags.items()]
    if draft.env:
        lines += ["", "[env]", *(line(key, value) for key, value in draft.env.items())]
    return "\n".join(lines) + "\n"


def _head(draft: Draft) -> list[str]:
    said = [
        f"Imported from {os.path.basename(draft.request.file.source)} (LlamaFactory) by gpuserve {gpuserved.__version__}."
    ]
    said += [
        f"- {note.key}: {note.reason}" for note in draft.notes if note.fate in {Fate.WARNED, Fate.REFUSED} and note.reason
    ]  # fmt: skip
    if len(said) > 1:
        said[0] += " To be known:"
    return [
        part
        for text in said
        for part in textwrap.wrap(
            # A control byte would end the comment.
            "".join(c if c.isprintable() else " " for c in text), _COLUMNS, initial_indent="# ",
            subsequent_indent="#   " if text.startswith("- ") else "# ", break_long_words=False, break_on_hyphens=False,
        )
    ]  # fmt: skip
