"""The corpus of requests: files of cases, each of which names what it checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

FOLDER = Path(__file__).parent / "corpus"
JSON = b'{"model":"m"}'
_WORDS = {
    "<POST>": "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n",
    "<TE>": "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "<LEN>": "Content-Length: 13\r\n",
    "<JSON>": JSON.decode(),
}
_REPEATED = re.compile(r"<([^<>*]+)\*(\d+)>")


@dataclass(frozen=True)
class Case:
    checks: str
    wire: bytes
    status: int
    target: str
    """Of a good one: what the replica gets."""


def _wire(text: str) -> bytes:
    text = text.encode("latin-1").decode("unicode_escape")
    for word, meaning in _WORDS.items():
        text = text.replace(word, meaning)
    repeated = _REPEATED.sub(
        lambda found: ("X-A: 1\r\n" if found[1] == "HEADERS" else found[1]) * int(found[2]), text
    )
    return repeated.encode("latin-1")


def cases(name: str) -> list[Case]:
    """Those of one file."""
    rows: list[dict[str, Any]] = tomli.loads((FOLDER / f"{name}.toml").read_text("utf-8"))["case"]
    return [
        Case(
            row["checks"],
            _wire(row["wire"]),
            row.get("status", 400),
            row.get("target", "/v1/chat/completions"),
        )
        for row in rows
    ]


BAD = sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != "good")
