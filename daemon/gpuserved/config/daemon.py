"""`gpuserved.toml`: flags beat it, it beats the defaults."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpuserved.api.errors import Invalid
from gpuserved.api.roots import Roots
from gpuserved.config.api_keys import read_keys
from gpuserved.config.document import Document, parse
from gpuserved.config.fields import Boolean, Key, Number, Read, Table, Text, Words

DEFAULT_LISTEN = ("127.0.0.1", 8000)
ROUTERS_MAX = 64
"""Rows of the shared in-flight counts."""
_WEEK_S = 7 * 86_400.0
_URL = re.compile(r"https?://[^\s/?#]+\S*")


@dataclass(frozen=True)
class Listen(Read):
    """An address, as host and port."""

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> tuple[str, int]:
        try:
            return parse_listen(Text()(document, path, value))
        except Invalid as error:
            if error.detail is not None:  # no text at all
                raise
            document.refuse(path, error.message, error.hint)


@dataclass(frozen=True)
class BesideFile(Read):
    """A path; a relative one is beside the daemon's file."""

    switch: bool = False
    """true and false are fine, too."""
    words: tuple[str, ...] = ()
    """These are no paths."""

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> Path | bool | str:
        if self.switch and (not isinstance(value, str) or not value):
            if not isinstance(value, bool):
                document.refuse_value(path, "true, false or a path", value)
            return value
        if value in self.words:
            return str(value)
        text = Text()(document, path, value) if not self.switch else value
        return Path(document.source).absolute().parent / Path(text).expanduser()


@dataclass(frozen=True)
class RouterCount(Read):
    """A number of routers, or "auto"."""

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> int:
        if value == "auto":
            return automatic_routers(len(os.sched_getaffinity(0)))
        if type(value) is not int or not 1 <= value <= ROUTERS_MAX:
            document.refuse_value(path, f'"auto" or a number from 1 to {ROUTERS_MAX}', value)
        return int(value)


@dataclass(frozen=True)
class Networks(Read):
    """Addresses and networks."""

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> tuple[str, ...]:
        found: list[str] = []
        for word in Words(at_least=0)(document, path, value):
            try:
                found.append(str(ipaddress.ip_network(word, strict=False)))
            except ValueError:
                document.refuse(path, f"{word!r} is no address and no network", 'write "10.0.0.0/8" or "::1"')
        return tuple(found)


_webhook = Text(needs=("an http:// or https:// URL", lambda v: bool(_URL.fullmatch(v))))
ROUTER = Table("router", (
    Key("listen", Listen(), "", example='"127.0.0.1:8000"'),
    Key("keys_file", BesideFile(), "lines NAME:SHA256 [rpm=60 tpm=... tpd=...]; gpuserve keys add NAME writes one", example='"keys"'),
    Key("routers", RouterCount(), 'or "auto": more than one where one core is not enough; counts from their next start', example="1"),
    Key("insecure", Boolean(), "true: serve other machines without keys", example="false"),
    Key("access_log", BesideFile(switch=True), "log/access.log, a JSON line for each request; false, or a path", example="true"),
    Key("tls_cert", BesideFile(), "with tls_key: HTTPS; gpuserve reload takes a renewed certificate", example='"cert.pem"'),
    Key("tls_key", BesideFile(), "", example='"key.pem"'),
    Key("trusted_proxies", Networks(), "whose X-Forwarded-For counts; nobody's otherwise", example='["10.0.0.0/8"]'),
    Key("drain_s", Number(0, _WEEK_S), "how long a router that an upgrade has replaced may finish what it has", example="3600"),
))  # fmt: skip
SUPERVISOR = Table("supervisor", (
    Key("orphan_ttl_s", Number(1, 52 * _WEEK_S),
        "replicas without supervisor and router stop after this; unset under systemd: never", example="1800"),
    Key("hang_timeout_s", Number(1, 86_400), "beats the profiles", example="120"),
    Key("hf_token_file", BesideFile(), "mode 600; reaches vLLM in its environment, and nothing else", example='"hf-token"'),
    Key("webhook", _webhook, "crash cards are posted there as JSON", example='"https://..."'),
))  # fmt: skip
GPUS = Table("gpus", (
    Key("provider", BesideFile(words=("auto", "nvml", "none")), "nvml, none, or an inventory file", example='"auto"'),
    Key("memory_back_s", Number(0.1, 3600), "a killed process that holds its GPU for longer: the GPU is set aside", example="60"),
))  # fmt: skip
TABLES = (ROUTER, SUPERVISOR, GPUS)


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
    Table("", ()).read(document, also=tuple(table.name for table in TABLES))
    router, supervisor, gpus = (table.read(document) for table in TABLES)
    if ("tls_cert" in router) != ("tls_key" in router):
        there, missing = ("tls_cert", "tls_key") if "tls_cert" in router else ("tls_key", "tls_cert")
        document.refuse(
            ("router", there), f"{there} is set without {missing}", f"set {missing} too, or neither"
        )
    host, port = router.pop("listen", DEFAULT_LISTEN)
    if "provider" in gpus:
        gpus["gpu_provider"] = str(gpus.pop("provider"))
    return DaemonConfig(host=host, port=port, **router, **supervisor, **gpus)


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


def check_certificate(cert: Path, key: Path) -> None:
    """:raises Invalid: the files cannot be read, or are no certificate and its key."""
    for path in (cert, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise Invalid(f"{path}: cannot be read: {error.strerror}", "check tls_cert and tls_key") from None
    try:
        # A key with a passphrase would make OpenSSL ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise Invalid(
            f"{cert} and {key} are no certificate and its key: {error}",
            "tls_cert is a PEM file with the whole chain, tls_key the PEM file of its key without a passphrase",
        ) from None


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


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "not plain text"
