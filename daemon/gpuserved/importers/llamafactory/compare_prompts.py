"""--check-template: the same conversations as token ids, from LlamaFactory's template and from the running engine."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gpuserved.api.errors import Invalid, TimedOut, Unavailable
from gpuserved.host.logtail import clean

RENDER_TIMEOUT_S = 300.0
"""LlamaFactory imports torch and transformers, and may download the tokenizer."""
CALL_TIMEOUT_S = 30.0
_SHOWN_TOKENS = 12
_ARGUMENTS = (
    "model_name_or_path", "adapter_name_or_path", "template", "default_system", "enable_thinking", "preserve_thinking",
    "tool_format", "trust_remote_code", "cache_dir", "model_revision",
)  # fmt: skip
CONVERSATIONS: tuple[tuple[str, list[dict[str, str]]], ...] = (
    ("one question", [{"role": "user", "content": "My order is late."}]),
    ("a system prompt", [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "My order is late."},
    ]),
    ("several turns", [
        {"role": "user", "content": "My order is late."},
        {"role": "assistant", "content": "I am sorry. What is its number?"},
        {"role": "user", "content": "It is 4711, and it was due yesterday."},
    ]),
    ("several turns after a system prompt", [
        {"role": "system", "content": "You help customers of a shop."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Where is my parcel?"},
    ]),
    ("blanks, line breaks and other scripts", [{"role": "user", "content": "  Zwei  Zeilen:\n\n你好, мир! \n"}]),
)  # fmt: skip


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation."""

    name: str
    same: bool
    llamafactory_tokens: int
    engine_tokens: int
    first_difference: int | None = None
    """Position of the first token that differs."""
    llamafactory_text: str | None = None
    engine_text: str | None = None


def compare(
    url: str, python: str | None, values: Mapping[str, Any], base: Path, served_name: str
) -> list[Compared]:
    """Compare every conversation.

    :param url: the running engine's, or its router's.
    :param python: interpreter of LlamaFactory's environment.
    :param values: of the imported file.
    :param base: the folder that LlamaFactory was started in.
    :raises GpuserveError: one of the two sides does not answer.
    """
    if python is None:
        raise Invalid(
            "--check-template needs LlamaFactory's own prompts",
            "--llamafactory-python names the interpreter of the environment that LlamaFactory is installed in",
        )
    ours = {key: values[key] for key in _ARGUMENTS if values.get(key) is not None}
    theirs = _render(python, ours, base)
    found = []
    for (name, messages), expected in zip(CONVERSATIONS, theirs, strict=True):
        got = _tokenize(url, served_name, messages)
        found.append(_compared(url, served_name, name, expected, got))
    return found


def _render(python: str, arguments: Mapping[str, Any], base: Path) -> list[list[int]]:
    """Token ids of every conversation, by LlamaFactory in its own environment."""
    program = files("gpuserved.importers.llamafactory").joinpath("render_prompts.py").read_text("utf-8")
    request = json.dumps(
        {"arguments": arguments, "conversations": [messages for _, messages in CONVERSATIONS]}
    )
    try:
        done = subprocess.run(
            [os.path.expanduser(python), "-c", program], input=request, capture_output=True, text=True, cwd=base,
            timeout=RENDER_TIMEOUT_S, check=False,
        )  # fmt: skip
    except OSError as error:
        raise Invalid(f"{python}: cannot be run: {error.strerror}", "check --llamafactory-python") from None
    except subprocess.TimeoutExpired:
        raise TimedOut(
            f"LlamaFactory rendered nothing within {RENDER_TIMEOUT_S:g} s", "is its model hub reachable?"
        ) from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("gpuserve-prompts ")]
    if done.returncode != 0 or not lines:
        last = [clean(line) for line in done.stderr.splitlines() if line.strip()][-3:]
        raise Invalid(
            f"LlamaFactory could not render the prompts: {' / '.join(last) or f'exit code {done.returncode}'}",
            "--llamafactory-python must be able to import llamafactory and to load the model's tokenizer",
        )
    return [[int(token) for token in tokens] for tokens in json.loads(lines[-1].split(" ", 1)[1])]


def _tokenize(url: str, model: str, messages: list[dict[str, str]]) -> list[int]:
    answer = _post(url, "/tokenize", {"model": model, "messages": messages, "add_generation_prompt": True})
    return [int(token) for token in answer["tokens"]]


def _compared(url: str, model: str, name: str, expected: list[int], got: list[int]) -> Compared:
    if expected == got:
        return Compared(name=name, same=True, llamafactory_tokens=len(expected), engine_tokens=len(got))
    at = next(
        (n for n, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    return Compared(
        name=name, same=False, llamafactory_tokens=len(expected), engine_tokens=len(got), first_difference=at,
        llamafactory_text=_text(url, model, expected[at : at + _SHOWN_TOKENS]),
        engine_text=_text(url, model, got[at : at + _SHOWN_TOKENS]),
    )  # fmt: skip


def _text(url: str, model: str, tokens: list[int]) -> str:
    return str(_post(url, "/detokenize", {"model": model, "tokens": tokens})["prompt"]) if tokens else ""


def _post(url: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Invalid(
            f"{url!r} is no address of an engine", "give the URL of the router, as in http://127.0.0.1:8000"
        )
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname, parts.port, timeout=CALL_TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        if os.environ.get("GPUSERVE_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['GPUSERVE_API_KEY']}"
        connection.request(
            "POST", parts.path.rstrip("/").removesuffix("/v1") + path, json.dumps(body), headers
        )
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(
            f"{url}: no engine answers: {error}", "gpuserve up starts the profile; then compare again"
        ) from None
    if answer.status != http.HTTPStatus.OK:
        said = clean(raw[:300].decode(errors="replace"))
        raise Unavailable(
            f"{url}{path}: HTTP {answer.status}: {said}", "is the profile served there, under this name?"
        )
    found: dict[str, Any] = json.loads(raw)
    return found
