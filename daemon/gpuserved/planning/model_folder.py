"""One model's folder: its configuration, and the real bytes of its weights from the safetensors index or headers."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from gpuserved.api.errors import Invalid
from gpuserved.core.planner import architecture
from gpuserved.core.planner.architecture import Files
from gpuserved.core.planner.model import ModelFacts, Unknown

CONFIG_MAX_BYTES = 16 * 1024 * 1024
HEADER_MAX_BYTES = 100 * 1024 * 1024
"""safetensors' own limit."""
_INDEX = ("model.safetensors.index.json", "consolidated.safetensors.index.json")
_LM_HEAD = "lm_head.weight"


def read(folder: Path, *, dtype: str | None = None, elsewhere: Files | None = None) -> ModelFacts | Unknown:
    """The facts of the model in a folder.

    :param elsewhere: what is known of the weights where they are not here.
    :raises Invalid: a file there is damaged; names it.
    """
    config = _json(folder / "config.json")
    if config is None:
        return Unknown(
            "unknown_architecture",
            f"{folder} holds no config.json",
            "its memory cannot be planned; it is started with --max-model-len auto",
        )
    files = weight_files(folder) or elsewhere
    return architecture.read(config, files, _identity(config, files, folder), dtype=dtype)


def weight_files(folder: Path) -> Files | None:
    """Bytes of the tensors; None: there are no weights here."""
    for name in _INDEX:
        index = _json(folder / name)
        if index is not None:
            return _from_index(folder, index)
    shards = sorted(folder.glob("*.safetensors"))
    single = [path for path in shards if path.name == "model.safetensors"] or [
        path for path in shards if not path.name.startswith("consolidated")
    ]
    tensors = [header(path) for path in single or shards]
    if tensors:
        return Files(
            sum(size for each in tensors for size in each.values()),
            "headers",
            any(_LM_HEAD in each for each in tensors),
        )
    pickled = sum(path.stat().st_size for path in folder.glob("pytorch_model*.bin"))
    return Files(pickled, "headers") if pickled else None


def _from_index(folder: Path, index: dict[str, Any]) -> Files | None:
    tensors = index.get("weight_map")
    has_head = isinstance(tensors, dict) and _LM_HEAD in tensors
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, (int, float)) and not isinstance(total, bool) and total > 0:
        return Files(int(total), "index", has_head)
    if not isinstance(tensors, dict):
        return None
    shards = sorted({str(name) for name in tensors.values()})
    paths = [folder / os.path.basename(name) for name in shards]
    if not paths or not all(path.is_file() for path in paths):
        return None
    return Files(sum(size for path in paths for size in header(path).values()), "headers", has_head)


def header(path: Path) -> dict[str, int]:
    """Names of the tensors in one safetensors file, and their bytes. Reads the header alone.

    :raises Invalid: it is no safetensors file, or cut off.
    """
    try:
        with open(path, "rb") as file:
            return _spans(file)
    except OSError as error:
        raise Invalid(f"{path}: cannot be read: {error.strerror}", "fetch the model again") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Invalid(f"{path}: not a safetensors file: {error}", "fetch the model again") from None


def _spans(file: BinaryIO) -> dict[str, int]:
    first = file.read(8)
    size = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 2 <= size <= HEADER_MAX_BYTES:
        raise ValueError("its header has no sensible length")
    table = json.loads(file.read(size))
    spans = {
        name: int(entry["data_offsets"][1]) - int(entry["data_offsets"][0])
        for name, entry in table.items()
        if name != "__metadata__"
    }
    whole = 8 + size + sum(spans.values())
    if os.fstat(file.fileno()).st_size < whole:
        raise ValueError(f"it is cut off: {whole} bytes are announced")
    return spans


def _json(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > CONFIG_MAX_BYTES and path.name == "config.json":
            raise Invalid(f"{path}: larger than any configuration", "point model at a model's folder")
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Invalid(f"{path}: cannot be read: {error.strerror}", "check its permissions") from None
    except ValueError as error:
        raise Invalid(f"{path}: not JSON: {error}", "fetch the model again") from None
    if not isinstance(found, dict):
        raise Invalid(f"{path}: not a JSON object", "fetch the model again")
    return found


def _identity(config: dict[str, Any], files: Files | None, folder: Path) -> str:
    """The same for the same model wherever it lies: configuration and bytes; a fine-tune of equal shape measures the same."""
    shape = {key: value for key, value in config.items() if not key.startswith(("_", "transformers_version"))}
    text = json.dumps([shape, files.total_bytes if files else None], sort_keys=True)
    adapters = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
    return hashlib.sha256((text + repr(adapters)).encode()).hexdigest()[:16]
