"""What a request's target, host and field lines may be made of."""

from __future__ import annotations

import ipaddress
import re

FIELD_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r\n")
"""RFC 9110 section 5.1: a token, and its value."""
_PATH_CHARS = rb"[A-Za-z0-9._~!$&'()*+,;=:@/-]*"
_QUERY_CHARS = rb"[A-Za-z0-9._~!$&'()*+,;=:@/?-]*"
ORIGIN_FORM = (
    rb"/" + _PATH_CHARS + rb"(?:%[0-9A-Fa-f]{2}" + _PATH_CHARS + rb")*"
    rb"(?:\?" + _QUERY_CHARS + rb"(?:%[0-9A-Fa-f]{2}" + _QUERY_CHARS + rb")*)?"
)
"""RFC 3986 sections 3.3 and 3.4, written so that no input makes the match backtrack."""
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?")


def valid_host(value: bytes) -> bool:
    """A name, an IPv4 or a bracketed IPv6 address, and perhaps a port (RFC 3986 section 3.2.2, narrowed to what
    names a machine).
    """
    found = _HOST.fullmatch(value)
    if found is None:
        return False
    if found[1] is not None:
        try:
            ipaddress.IPv6Address(found[1].decode("ascii"))
        except ValueError:
            return False
    return found[2] is None or 0 < int(found[2]) <= 65535
