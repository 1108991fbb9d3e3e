"""What of the daemon's file concerns who connects: proxies that are believed, certificates."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuserved.api.errors import Invalid
from gpuserved.config.document import Document


def networks(document: Document, router: Mapping[str, Any]) -> tuple[str, ...]:
    """`trusted_proxies` as networks.

    :raises Invalid: one of them is none.
    """
    found: list[str] = []
    for word in router.get("trusted_proxies", ()):
        try:
            found.append(str(ipaddress.ip_network(word, strict=False)))
        except ValueError:
            document.refuse(
                ("router", "trusted_proxies"),
                f"{word!r} is no address and no network",
                'write "10.0.0.0/8" or "::1"',
            )
    return tuple(found)


def both_or_none(document: Document, router: Mapping[str, Any]) -> None:
    """:raises Invalid: a certificate without its key, or the other way round."""
    if ("tls_cert" in router) != ("tls_key" in router):
        there, missing = ("tls_cert", "tls_key") if "tls_cert" in router else ("tls_key", "tls_cert")
        document.refuse(
            ("router", there), f"{there} is set without {missing}", f"set {missing} too, or neither"
        )


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
