"""Whose address a request comes from; what a client claims counts only behind a trusted proxy."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
IPV6_PREFIX = 64
"""One customer usually holds a whole /64, so it counts as one client."""
UNKNOWN = "unknown"
CACHED_ADDRESSES = 4096


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return networks such as 10.0.0.0/8 or ::1. Raises ValueError for anything else."""
    return tuple(ip_network(text, strict=False) for text in texts)


def is_in(address: str, found: Sequence[Network]) -> bool:
    """Whether an address (or the network that stands for it) is in one of the networks."""
    if not found or address == UNKNOWN:
        return False
    one = ip_network(address, strict=False)
    return any(one.version == net.version and one.network_address in net for net in found)


def client_address(peer: str, headers: Mapping[bytes, bytes], trusted: Sequence[Network]) -> str:
    """Return the client's address: the connection's peer or, when that is a trusted proxy, the
    last entry of X-Forwarded-For that no trusted proxy wrote about another one.

    IPv6 addresses come back as their /64.
    """
    address = _client(peer)
    if not trusted or not is_in(address, trusted):
        return address
    entries = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
    for entry in reversed(entries):
        claimed = _client(entry.strip())
        if claimed == UNKNOWN:
            return address
        address = claimed
        if not is_in(address, trusted):
            return address
    return address


@lru_cache(CACHED_ADDRESSES)
def _client(text: str) -> str:
    try:
        address = ip_address(text.strip("[]").split("%")[0])
    except ValueError:
        return UNKNOWN
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network(f"{address}/{IPV6_PREFIX}", strict=False))
    return str(address)
