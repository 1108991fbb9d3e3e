"""Who a request comes from, where proxies that are trusted pass it on."""

from __future__ import annotations

import ipaddress

from gpuserved.router.http.head import RequestHead

_HOPS_MAX = 32
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if "%" in text:  # a zone may hold anything, and means nothing on another machine
        return None
    try:
        found = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


class TrustedProxies:
    """X-Forwarded-For counts from these networks, and from nobody else."""

    def __init__(self, networks: list[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(each, strict=False) for each in networks]

    def _trusts(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(
            address.version == each.version and address in each for each in self._networks
        )

    def chain(self, head: RequestHead, peer: str) -> list[str]:
        """From the client to `peer`: each was named by the next one, which is trusted. The first is the nearest that nobody
        need be believed for (the rightmost untrusted one), so what a client writes itself never counts.
        """
        chain = [peer]
        if not self._networks or not self._trusts(peer):
            return chain
        named = [
            hop.strip()
            for value in head.all(b"x-forwarded-for")
            for hop in value.decode("latin-1").split(",")
        ]
        for hop in reversed(named[-_HOPS_MAX:]):
            address = _address(hop)
            if address is None:
                break
            chain.insert(0, str(address))
            if not self._trusts(hop):
                break
        return chain
