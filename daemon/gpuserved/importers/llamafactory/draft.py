"""A profile in the making, and the account of every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpuserved.core.profile import FlagValue
from gpuserved.importers.llamafactory.keys import Fate
from gpuserved.importers.yaml_text import Path as KeyPath
from gpuserved.importers.yaml_text import YamlText

KEY_UNSUPPORTED = "llamafactory_key_unsupported"
TEMPLATE_MISMATCH = "template_mismatch"


@dataclass(frozen=True)
class Note:
    """What became of one key, or of one environment variable of LlamaFactory's server."""

    key: str
    fate: Fate
    reason: str
    where: str | None = None
    """`file:line:column`; None: not in the file, LlamaFactory's default or environment decides."""
    becomes: str | None = None
    code: str | None = None
    """Of a warning or refusal that the contract names."""


@dataclass(frozen=True)
class Request:
    """What an import starts from."""

    file: YamlText
    values: Mapping[str, Any]
    """The file with overrides applied and interpolations resolved."""
    env: Mapping[str, str]
    base: Path
    """The folder that LlamaFactory was started in: its relative paths are relative to this."""
    name: str
    """The profile's name."""
    served_name: str | None = None
    python: str | None = None
    chat_template: str | None = None
    accept_template_risk: bool = False
    prompts_same: bool | None = None
    """What a comparison with the running engine found; None: there was none."""


@dataclass
class Draft:
    """Filled by one part after the other."""

    request: Request
    top: dict[str, FlagValue] = field(default_factory=dict)
    flags: dict[str, FlagValue] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    """Key of the profile -> what stands beside it."""
    notes: list[Note] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Further files that the profile needs beside itself: name -> text."""
    asked_tensor_parallel_size: int | None = None
    """What the file asks for; None: LlamaFactory would take every visible GPU."""

    def note(
        self, key: str, fate: Fate, reason: str, *, becomes: str | None = None, code: str | None = None,
        inside: KeyPath | None = None,
    ) -> None:  # fmt: skip
        """Account for a key. `inside`: where exactly it stands, when that is not the top of the file."""
        self.notes.append(Note(key, fate, reason, self.request.file.at(inside or (key,)), becomes, code))

    def refuse(
        self, key: str, reason: str, *, code: str = KEY_UNSUPPORTED, inside: KeyPath | None = None
    ) -> None:
        """The file cannot be served as it is; all reasons are gathered, so that one run shows them all."""
        self.note(key, Fate.REFUSED, reason, code=code, inside=inside)

    def beat(self, becomes: str, by: str) -> None:
        """What an earlier key became is beaten by a later one: its account says so."""
        self.notes = [
            replace(note, fate=Fate.UNUSED, reason=f"{by} beats it", becomes=None)
            if note.becomes == becomes
            else note
            for note in self.notes
        ]

    def set_flag(self, name: str, value: FlagValue, comment: str | None = None) -> None:
        """Set a key of [vllm]."""
        self.flags[name] = value
        if comment:
            self.comments[f"vllm.{name}"] = comment

    def replace_flag(self, name: str, value: FlagValue) -> None:
        """Set a key of [vllm] whose comment, where it has one, was about another value."""
        self.flags[name] = value
        self.comments.pop(f"vllm.{name}", None)

    def set_variable(self, name: str, value: str) -> None:
        """Set a variable of [env]."""
        self.env[name] = value

    def add_file(self, name: str, text: str) -> None:
        """A file beside the profile."""
        self.files[name] = text

    def ask_tensor_parallel(self, size: int) -> None:
        """The file asks for this many GPUs."""
        self.asked_tensor_parallel_size = size

    def set_top(self, name: str, value: FlagValue, comment: str | None = None) -> None:
        """Set a key at the top of the profile."""
        self.top[name] = value
        if comment:
            self.comments[name] = comment

    # Values of the file, with the types that LlamaFactory's argument classes say (it does not check them itself).

    def given(self, key: str) -> bool:
        """True where the file says something other than null."""
        return self.request.values.get(key) is not None

    def text(self, key: str) -> str | None:
        """A string; None: not given."""
        value = self.request.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            self.request.file.refuse_value((key,), "a text", value)
        return value.strip()

    def integer(self, key: str, default: int, *, low: int = 1) -> int:
        """A whole number; text that an environment variable gave counts too."""
        value = self.request.values.get(key)
        if isinstance(value, str) and value.strip().lstrip("-").isdigit():
            value = int(value)
        if value is None:
            return default
        if type(value) is not int or value < low:
            self.request.file.refuse_value((key,), f"a whole number of at least {low}", value)
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number in a range."""
        value = self.request.values.get(key)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                self.request.file.refuse_value((key,), "a number", value)
        if value is None:
            return default
        if type(value) not in {int, float} or not low <= value <= high:
            self.request.file.refuse_value((key,), f"a number from {low:g} to {high:g}", value)
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """A truth value."""
        value = self.request.values.get(key)
        if isinstance(value, str) and value.lower() in {"true", "false", "1", "0"}:
            value = value.lower() in {"true", "1"}
        if value is None:
            return default
        if not isinstance(value, bool):
            self.request.file.refuse_value((key,), "true or false", value)
        return value

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.request.values.get(key)
        if value is None:
            return default
        if value not in choices:
            self.request.file.refuse_value((key,), "one of " + ", ".join(choices), value)
        return str(value)

    def path(self, written: str) -> str:
        """A path of the file as an absolute one: LlamaFactory's are relative to where it is started."""
        return str((self.request.base / Path(written).expanduser()).absolute())
