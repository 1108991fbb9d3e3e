"""`gpuserved.toml`: flags beat it, it beats the defaults."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.api.roots import Roots
from gpuserved.config.document import Document, parse
from gpuserved.config.fields import Number, Read, Text, Words, boolean, read_table
from gpuserved.config.front import both_or_none, check_certificate, networks
from gpuserved.config.keys import read_keys

DEFAULT_LISTEN = ("127.0.0.1", 8000)
ROUTERS_MAX = 64
"""Rows of the shared in-flight counts."""
_WEEK_S = 7 * 86_400.0
_URL = re.compile(r"https?://[^\s/?#]+\S*")


def _switch_or_path(document: Document, path: tuple[str, ...], value: object) -> bool | str:
    if isinstance(value, (bool, str)) and value != "":
        return value
    return document.refuse_value(path, "true, false or a path", value)


_ROUTER: dict[str, Read] = {
    "listen": Text(), "keys_file": Text(), "insecure": boolean, "access_log": _switch_or_path,
    "trusted_proxies": Words(at_least=0), "tls_cert": Text(), "tls_key": Text(), "drain_s": Number(0, _WEEK_S),
}  # fmt: skip
_SUPERVISOR: dict[str, Read] = {
    "orphan_ttl_s": Number(1, 52 * _WEEK_S),
    "hang_timeout_s": Number(1, 86_400),
    "hf_token_file": Text(),
    "webhook": Text(needs=("an http:// or https:// URL", lambda v: bool(_URL.fullmatch(v)))),
}
_GPUS: dict[str, Read] = {"provider": Text(), "memory_back_s": Number(0.1, 3600)}


@dataclass(frozen=True)
class DaemonConfig:
    """Everything of the daemon's own that an operator can set."""

    host: str = DEFAULT_LISTEN[0]
    port: int = DEFAULT_LISTEN[1]
    routers: int = 1
    keys_file: Path | None = None
    insecure: bool = False
    access_log: bool | Path = True
    """The routers' access log: True in the log folder, a path there, False nowhere."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-For counts."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    drain_s: float | None = None
    """How long a router that was replaced goes on with what it has; None: an hour."""
    orphan_ttl_s: float | None = None
    """None: replicas wait for a supervisor or router for ever."""
    hang_timeout_s: float | None = None
    """Beats the profiles' default; None: each profile's own."""
    hf_token_file: Path | None = None
    webhook: str | None = field(default=None, repr=False)
    """Where crash cards are posted. The URL itself is often the secret."""
    gpu_provider: str = "auto"
    """auto, nvml, none, or the path of an inventory file."""
    memory_back_s: float | None = None
    """How long a killed process may hold its GPU before the GPU is set aside; None: the default."""

    def access_log_in(self, log_folder: Path) -> Path | None:
        """Where the access log is; None: there is none."""
        if isinstance(self.access_log, Path):
            return self.access_log
        return log_folder / "access.log" if self.access_log else None

    @property
    def listen(self) -> str:
        """`HOST:PORT`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def with_flags(
        self,
        *,
        listen: str | None = None,
        keys_file: str | None = None,
        insecure: bool = False,
        orphan_ttl_s: float | None = None,
    ) -> DaemonConfig:
        """The same with what the command line says instead."""
        config = self
        if listen is not None:
            host, port = parse_listen(listen)
            config = replace(config, host=host, port=port)
        if keys_file is not None:
            config = replace(config, keys_file=Path(keys_file).expanduser().absolute())
        if orphan_ttl_s is not None:
            config = replace(config, orphan_ttl_s=orphan_ttl_s)
        return replace(config, insecure=config.insecure or insecure)

    def with_default_keys(self, folder: Path) -> DaemonConfig:
        """The same; where nothing names a keys file, the one called `keys` in the configuration folder counts."""
        path = folder / "keys"
        return replace(self, keys_file=path) if self.keys_file is None and path.is_file() else self

    def checked(self) -> DaemonConfig:
        """The same, once it is safe to serve with it.

        :raises Invalid: an address others can reach without a single key and without `insecure`; a certificate that
            cannot be used.
        """
        if self.tls_cert is not None and self.tls_key is not None:
            check_certificate(self.tls_cert, self.tls_key)
        if is_loopback(self.host) or self.insecure:
            return self
        if self.keys_file is None or not read_keys(self.keys_file):
            raise Invalid(
                f"{self.listen} can be reached from other machines, and no API keys are set",
                "gpuserve up --listen ADDR --generate-key makes one; [router] keys_file names a file of them; "
                "insecure = true serves everybody",
            )
        return self


def find_config(roots: Roots) -> Path | None:
    """The daemon's file where none is named; None: there is none, and the defaults count."""
    path = roots.config / "gpuserved.toml"
    return path if path.is_file() else None


def load_daemon_config(path: Path | None) -> DaemonConfig:
    """Read the daemon's file. Paths in it that are relative are beside it.

    :param path: None: the defaults.
    :raises Invalid: naming file, line and key.
    """
    if path is None:
        return DaemonConfig()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: cannot be read: {_reason(error)}", "check the path after --config") from None
    return parse_daemon_config(text, path)


def parse_daemon_config(text: str, path: Path) -> DaemonConfig:
    """The same for text that stands, or would stand, in `path`."""
    document = parse(text, str(path))
    read_table(document, (), {}, also=("router", "supervisor", "gpus"))
    router = read_table(document, ("router",), _ROUTER, also=("routers",))
    supervisor = read_table(document, ("supervisor",), _SUPERVISOR)
    gpus = read_table(document, ("gpus",), _GPUS)
    both_or_none(document, router)
    folder = path.absolute().parent
    host, port = DEFAULT_LISTEN
    if "listen" in router:
        try:
            host, port = parse_listen(router["listen"])
        except Invalid as error:
            document.refuse(("router", "listen"), error.message, error.hint)
    provider = gpus.get("provider", "auto")
    return DaemonConfig(
        host=host,
        port=port,
        routers=_routers(document),
        keys_file=_beside(folder, router.get("keys_file")),
        insecure=router.get("insecure", False),
        access_log=_access_log(folder, router.get("access_log", True)),
        trusted_proxies=networks(document, router),
        tls_cert=_beside(folder, router.get("tls_cert")),
        tls_key=_beside(folder, router.get("tls_key")),
        drain_s=router.get("drain_s"),
        orphan_ttl_s=supervisor.get("orphan_ttl_s"),
        hang_timeout_s=supervisor.get("hang_timeout_s"),
        hf_token_file=_beside(folder, supervisor.get("hf_token_file")),
        webhook=supervisor.get("webhook"),
        gpu_provider=provider if provider in {"auto", "nvml", "none"} else str(_beside(folder, provider)),
        memory_back_s=gpus.get("memory_back_s"),
    )


def _routers(document: Document) -> int:
    given = document.data.get("router", {}).get("routers", 1)
    if given == "auto":
        return automatic_routers(len(os.sched_getaffinity(0)))
    if type(given) is not int or not 1 <= given <= ROUTERS_MAX:
        document.refuse_value(("router", "routers"), f'"auto" or a number from 1 to {ROUTERS_MAX}', given)
    return int(given)


def automatic_routers(cpus: int) -> int:
    """One router for every 16 processors, 8 at most: one core carries the streams of several GPUs (docs/performance.md), and
    engines need the others.
    """
    return max(1, min(8, cpus // 16))


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[V6]:PORT` or `PORT` (this machine alone) as host and port.

    :raises Invalid: anything else.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        good = ":" in host
    else:
        good = re.fullmatch(r"[A-Za-z0-9._-]*", host) is not None
    if not good or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise Invalid(
            f"{text!r} is not an address to listen on",
            "write HOST:PORT, as in 127.0.0.1:8000, 0.0.0.0:8000 or [::1]:8000",
        )
    return host or DEFAULT_LISTEN[0], int(port)


def is_loopback(host: str) -> bool:
    """True where only this machine can connect."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_hf_token(path: Path) -> str:
    """The Hugging Face token in a file that only its owner, or its group, can read.

    :raises Invalid: unreadable, empty, or readable by everybody.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            f"{path}: hf_token_file cannot be read: {_reason(error)}", "check hf_token_file"
        ) from None
    if mode & stat.S_IROTH:
        raise Invalid(f"{path}: everybody can read this token", f"chmod 600 {path}")
    if not text or len(text.split()) != 1:
        raise Invalid(f"{path}: expected one token and nothing else", "write the token alone into the file")
    return text


def _access_log(folder: Path, written: bool | str) -> bool | Path:
    return written if isinstance(written, bool) else folder / Path(written).expanduser()


def _beside(folder: Path, written: str | None) -> Path | None:
    return None if written is None else folder / Path(written).expanduser()


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "not plain text"
