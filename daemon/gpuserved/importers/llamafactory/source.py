"""The file and what stands behind it on LlamaFactory's command line: `FILE.yaml KEY=VALUE ...`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gpuserved.api.errors import Invalid, NotFound
from gpuserved.importers.interpolation import Resolver
from gpuserved.importers.yaml_text import YamlText, parse

_MAX_BYTES = 1024 * 1024


def read(
    path: Path, overrides: Sequence[str], env: Mapping[str, str]
) -> tuple[YamlText, dict[str, Any], list[str]]:
    """The file, its values with overrides applied and interpolations resolved, and the keys that had an interpolation.

    :raises NotFound: no such file.
    :raises Invalid: not YAML, a key twice, or an interpolation that cannot be resolved.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file", "check the path") from None
    except OSError as error:
        raise Invalid(f"{path}: cannot be read: {error.strerror}", "check the path") from None
    if len(raw) > _MAX_BYTES:
        raise Invalid(
            f"{path}: larger than any LlamaFactory file", "give the YAML that llamafactory-cli api takes"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Invalid(f"{path}:{line}: not UTF-8 text", "save the file as UTF-8") from None
    file = parse(text, str(path))
    for word in overrides:
        _override(file, word)
    resolver = Resolver(file, env)
    values = resolver.all()
    return file, values, sorted({".".join(map(str, path)) for path in resolver.used})


def _override(file: YamlText, word: str) -> None:
    """One `KEY=VALUE`, as OmegaConf takes them; `vllm_config.KEY=VALUE` reaches inside."""
    key, equals, written = word.partition("=")
    if not equals or not key or key.startswith("-"):
        raise Invalid(
            f"{word!r} is no override",
            "after the file LlamaFactory takes KEY=VALUE, as in infer_backend=vllm; its port is the variable API_PORT",
        )
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError:
        raise Invalid(f"{key}: the value {written!r} is not valid YAML", "quote it") from None
    file.override(key, value)
