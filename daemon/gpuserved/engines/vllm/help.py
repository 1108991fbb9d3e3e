"""The table of flags in the text of `vllm serve --help=all`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SWITCH, TOGGLE, VALUE, VALUES = "switch", "toggle", "value", "values"
"""--x alone; --x or --no-x; --x V; --x V V ..."""
_NAME = r"--([A-Za-z0-9][\w.-]*)"
_CHOICES = re.compile(r"\{([^{}]+)\}")
_NUMBER = re.compile(r"\(default: -?\d+(?:\.\d+)?(?:e-?\d+)?\)$")
_DEPRECATED = re.compile(r"(--[\w.-]+ is deprecated[^()]*)")
_NUMBERS = frozenset(
    {
        "gpu-memory-utilization",
        "max-num-seqs",
        "max-num-batched-tokens",
        "kv-cache-memory-bytes",
        "cpu-offload-gb",
    }
)
"""Numbers whose help tells no default number: vLLM computes it, or says it in prose."""


@dataclass(frozen=True)
class FlagTable:
    """The flags of one vLLM version. Names are long ones without dashes in front, aliases included."""

    version: str
    kinds: dict[str, str] = field(default_factory=dict)
    """Name -> SWITCH, TOGGLE, VALUE or VALUES."""
    choices: dict[str, list[str]] = field(default_factory=dict)
    """Name -> the only words that it takes."""
    numbers: list[str] = field(default_factory=list)
    """Names whose value is a number; vLLM also reads 2k or 1.5M for whole ones."""
    deprecated: dict[str, str] = field(default_factory=dict)
    """Name -> what the help says of its end."""


def parse_help(text: str, version: str) -> FlagTable:
    """Read the table. Option lines are indented by exactly two blanks, what is said of them by more."""
    table = FlagTable(version)
    for block in re.split(r"^(?=  -)", text, flags=re.MULTILINE)[1:]:
        lines = re.split(r"^(?=\S)", block, flags=re.MULTILINE)[0].splitlines()
        head, *said = re.split(r"\s{2,}", lines[0].strip(), maxsplit=1)
        prose = " ".join([*said, *(line.strip() for line in lines[1:])]).strip()
        _note(table, head, prose)
    return table


def _note(table: FlagTable, head: str, prose: str) -> None:
    names = re.findall(rf"(?:^|, ){_NAME}", head)
    rest = re.sub(r"(?:^|, )--?[A-Za-z0-9][\w.-]*(?= |,|$)", "", head).strip()
    found = _CHOICES.match(rest)
    ending = _DEPRECATED.search(prose)
    for name in names:
        if name.startswith("no-") and name[3:] in names:
            continue
        table.kinds[name] = _kind(rest, toggle=f"no-{name}" in names)
        if found is not None:
            table.choices[name] = found[1].split(",")
        elif _NUMBER.search(prose) or name in _NUMBERS:
            table.numbers.append(name)
        if ending is not None:
            table.deprecated[name] = ending[1].replace("- ", "-").strip()


def _kind(metavar: str, *, toggle: bool) -> str:
    if toggle:
        return TOGGLE
    if not metavar:
        return SWITCH
    return VALUES if re.search(r"\.\.\.\]", metavar) else VALUE
