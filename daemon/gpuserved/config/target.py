"""What a TARGET on the command line means: a file, a model's folder, a profile's name, or a hub id."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuserved.api.errors import Invalid, NotFound
from gpuserved.config.profile import NAME_MAX_CHARS, check_name
from gpuserved.config.write import quoted
from gpuserved.core.profile import EngineName

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_PROFILE_MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class Target:
    """A profile's text, ready to be sent to the daemon."""

    name: str
    text: str
    source: str
    """The file it came from as an absolute path, or for a quick start what was typed."""


def profile_folders(config_root: Path, cwd: Path) -> list[Path]:
    """Where a profile's name is looked up, in order; the last two hold the profiles that come with gpuserve."""
    installed = Path(sys.prefix) / "share" / "gpuserve" / "profiles"
    source_tree = Path(__file__).resolve().parents[3] / "profiles"
    return [cwd / "profiles", config_root / "profiles", installed, source_tree]


def resolve(written: str, folders: Sequence[Path], *, engine: str | None = None) -> Target:
    """Find what a TARGET names. It is a path where it holds a slash, ends in .toml or exists; else a profile's name.

    `OWNER/NAME` that is no path here is a hub id.
    :param engine: the engine of a quick start; a profile names its own.
    :raises Invalid: a path that is neither a profile nor a model's folder.
    :raises NotFound: nothing of that name.
    """
    path = Path(written).expanduser()
    if path.is_dir():
        return _model_folder(path, written, engine)
    if path.is_file() or written.endswith(".toml"):
        return _file(path, engine)
    if written.startswith(("/", ".", "~")):
        raise NotFound(f"{written}: there is no such file or folder", "check the path")
    if "/" in written:
        if not _HUB_ID.fullmatch(written):
            raise NotFound(
                f"{written}: neither a path on this machine nor a hub id", "a hub id has the form OWNER/NAME"
            )
        return _quick(written, served_name=written, name=written.split("/")[1], source=written, engine=engine)
    return _named(written, folders, engine)


def _named(name: str, folders: Sequence[Path], engine: str | None) -> Target:
    for folder in folders:
        path = folder / f"{name}.toml"
        if path.is_file():
            return _file(path, engine)
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.toml")})
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}" if near else f"known profiles: {', '.join(known) or 'none'}"
    raise NotFound(
        f"there is no profile {name!r}", f"{hint}; a path needs a slash or .toml, a hub id is OWNER/NAME"
    )


def _file(path: Path, engine: str | None) -> Target:
    if path.suffix != ".toml":
        raise Invalid(
            f"{path}: expected a profile (NAME.toml) or a model's folder",
            "give the folder that holds config.json",
        )
    if engine is not None:
        raise Invalid(
            f"{path}: --engine is for a quick start; a profile names its engine itself",
            f'write engine = "{engine}" into the profile',
        )
    name = check_name(path.stem, str(path))
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        kind = NotFound if missing else Invalid
        raise kind(
            f"{path}: {'there is no such file' if missing else error.strerror}", "check the path"
        ) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Invalid(f"{path}:{line}: not UTF-8 text", "TOML files are UTF-8") from None
    if len(raw) > _PROFILE_MAX_BYTES:
        raise Invalid(f"{path}: larger than any profile", f"at most {_PROFILE_MAX_BYTES // 1024} KiB")
    return Target(name, text, str(path.absolute()))


def _model_folder(path: Path, written: str, engine: str | None) -> Target:
    folder = path.resolve()
    if not (folder / "config.json").is_file() and not (folder / "params.json").is_file():
        raise Invalid(
            f"{written}: a folder without config.json is no model",
            "give the folder of a Hugging Face model, or a profile's NAME.toml",
        )
    return _quick(str(folder), served_name=folder.name, name=folder.name, source=written, engine=engine)


def _quick(model: str, *, served_name: str, name: str, source: str, engine: str | None) -> Target:
    """A profile with everything automatic."""
    engine_name = EngineName(engine) if engine else EngineName.VLLM
    served = re.sub(r"\s+", "-", served_name)
    lines = [
        f"model = {quoted(model)}",
        f"served_name = {quoted(served)}",
        f"engine = {quoted(engine_name.value)}",
    ]
    return Target(check_name(name_from(name)), "\n".join(lines) + "\n", source)


def name_from(text: str) -> str:
    """A profile's name made of any text, such as a model's name."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:NAME_MAX_CHARS].rstrip("._-")
    return slug or "model"
