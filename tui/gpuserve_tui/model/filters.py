"""What is typed after `/`: words that must all be found. `!word` must not be; `/regex/`; `state:failed`, `gpu:3`, `model:x`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

FIELDS = ("state", "gpu", "model", "profile", "id")


class BadFilter(ValueError):
    """The text is no filter; says why."""


@dataclass(frozen=True)
class Filter:
    """A parsed filter; the empty one lets everything through."""

    text: str = ""
    tests: tuple[Callable[[str, Mapping[str, tuple[str, ...]]], bool], ...] = ()

    def matches(self, text: str, fields: Mapping[str, tuple[str, ...]] | None = None) -> bool:
        """True where every word agrees.

        :param fields: the values that `name:value` looks at.
        """
        return all(test(text, fields or {}) for test in self.tests)


def parse(text: str) -> Filter:
    """The filter that `text` writes.

    :raises BadFilter: a regular expression that is none.
    """
    text = text.strip()
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        return Filter(text, (_regex(text[1:-1]),))
    return Filter(text, tuple(_word(word) for word in text.split()))


def _word(word: str) -> Callable[[str, Mapping[str, tuple[str, ...]]], bool]:
    if word.startswith("!") and len(word) > 1:
        inner = _word(word[1:])
        return lambda text, fields: not inner(text, fields)
    name, colon, value = word.partition(":")
    if colon and value and name in FIELDS:
        wanted = value.lower()
        if name == "gpu":
            return lambda _text, fields: wanted in fields.get(name, ())
        return lambda _text, fields: any(wanted in each.lower() for each in fields.get(name, ()))
    lowered = word.lower()
    return lambda text, _fields: lowered in text.lower()


def _regex(pattern: str) -> Callable[[str, Mapping[str, tuple[str, ...]]], bool]:
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise BadFilter(f"/{pattern}/ is no regular expression: {error}") from None
    return lambda text, _fields: compiled.search(text) is not None
