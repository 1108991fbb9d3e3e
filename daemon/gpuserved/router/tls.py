"""TLS of the public port, with certificates that can be renewed while connections last."""

from __future__ import annotations

import logging
import ssl

from gpuserved.api.routing import Tls

log = logging.getLogger(__name__)


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 and newer, HTTP/1.1.

    :raises OSError: the files cannot be read; :raises ssl.SSLError: they are no certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.cert, tls.key)
    return context


class Certificates:
    """The port's present certificate. What cannot be loaded changes nothing."""

    def __init__(self) -> None:
        self.context: ssl.SSLContext | None = None

    def take(self, tls: Tls | None) -> bool:
        """Use these files, as they are now. True: the port changes between plain and TLS, and must be opened anew; a renewed
        certificate is used for new connections as it is.
        """
        before = self.context is not None
        if tls is None:
            self.context = None
            return before
        try:
            fresh = server_context(tls)
            if self.context is not None:
                self.context.load_cert_chain(tls.cert, tls.key)
            else:
                self.context = fresh
        except (OSError, ssl.SSLError) as error:
            log.error("the certificate %s is not used: %s", tls.cert, error)  # noqa: TRY400 - the reason says it all
        return (self.context is not None) != before
